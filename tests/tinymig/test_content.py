import numpy as np
import pytest
import torch

from nnunet_dg.tinymig import ContentAlignment, FrequencyContentEnhancement, localized_representation_alignment
from nnunet_dg.tinymig.alignment import pool, pooled_shape

SHAPES = [(6, 8), (7, 5), (4, 6, 8), (5, 7, 3)]


def opened(module):
    """Filters that let everything pass, and one for every channel."""
    with torch.no_grad():
        module.amplitude_filter.fill_(100)
        module.phase_filter.fill_(100)
        module.refiner[-2].weight.zero_()
        module.refiner[-2].bias.fill_(100)
    return module


@pytest.mark.parametrize("shape", SHAPES)
def test_open_filters_and_unit_weights_are_the_identity(shape):
    x = torch.randn(2, 4, *shape)
    torch.testing.assert_close(opened(FrequencyContentEnhancement(4, shape))(x), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("off", [(), ("amplitude",), ("phase",), ("refine",)])
def test_equals_numpy(shape, off):
    module = FrequencyContentEnhancement(4, shape, **dict.fromkeys(off, False))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 4, *shape)
    axes = tuple(range(2, x.ndim))
    spectrum = np.fft.rfftn(x.double().numpy(), axes=axes)
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    phase[phase < 1e-4 - np.pi] += 2 * np.pi

    def sigmoid(values):
        return 1 / (1 + np.exp(-values.detach().double().numpy()))

    if "amplitude" not in off:
        amplitude = amplitude * sigmoid(module.amplitude_filter)
    if "phase" not in off:
        phase = phase * sigmoid(module.phase_filter)
    expected = np.fft.irfftn(amplitude * np.exp(1j * phase), s=shape, axes=axes)
    if "refine" not in off:
        squeezed = phase.mean(axes)
        first, _, second, _ = module.refiner
        w, b, v, c = (p.detach().double().numpy() for p in (first.weight, first.bias, second.weight, second.bias))
        weights = 1 / (1 + np.exp(-(np.maximum(squeezed @ w.T + b, 0) @ v.T + c)))
        expected = expected * weights.reshape(2, 4, *[1] * len(shape))
    np.testing.assert_allclose(module(x).detach(), expected, rtol=1e-3, atol=1e-4)


def test_filters_start_at_one_and_hold_one_value_per_frequency():
    module = FrequencyContentEnhancement(8, (6, 5))
    for parameter in (module.amplitude_filter, module.phase_filter):
        assert parameter.shape == (6, 3)
        assert (parameter == 1).all()


def test_gradients_agree_with_differences():
    torch.manual_seed(0)
    module = FrequencyContentEnhancement(2, (3, 4)).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    single, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
    try:
        assert torch.autograd.gradcheck(module, (x,))
    finally:
        torch.Tensor.float = single


@pytest.mark.parametrize(("value", "single"), [(0.0, 0.0), (3.0, 3.0), (0.0, 1e-20), (0.0, 1e-30)])
def test_gradients_are_finite_for_constant_features_and_next_to_nothing(value, single):
    module = FrequencyContentEnhancement(3, (4, 5))
    x = torch.full((1, 3, 4, 5), value)
    x[0, 0, 0, 0] = single
    x.requires_grad_()
    module(x).square().sum().backward()
    for gradient in (x.grad, *(p.grad for p in module.parameters())):
        assert torch.isfinite(gradient).all()


def test_single_precision_under_autocast():
    module, x = FrequencyContentEnhancement(3, (4, 5)), torch.randn(1, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        enhanced = module(x)
    assert enhanced.dtype == torch.float32
    torch.testing.assert_close(enhanced, module(x))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(B, 3, 4, 5\) was expected; got \(1, 3, 4, 6\)"):
        FrequencyContentEnhancement(3, (4, 5))(torch.zeros(1, 3, 4, 6))


def test_alignment_by_hand():
    teacher = [torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 1, 1)]
    student = [torch.full((1, 1, 2, 2), 2.0), torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)]
    assert float(localized_representation_alignment(teacher, student)) == (4 + 5) / 2


@pytest.mark.parametrize(
    "parts", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_both_sides_are_enhanced_by_the_same_filters_at_each_depth(parts):
    torch.manual_seed(0)
    widths, grids = (4, 8), ((40, 4, 4), (6, 4, 4))
    module = ContentAlignment(widths, grids, *parts)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    teacher, student = ([torch.randn(2, w, *g) for w, g in zip(widths, grids, strict=True)] for _ in range(2))
    expected = []
    for depth, (width, grid) in enumerate(zip(widths, ((32, 4, 4), (6, 4, 4)), strict=True)):
        alone = FrequencyContentEnhancement(
            width, grid, **dict(zip(("amplitude", "phase", "refine"), parts, strict=True))
        )
        alone.load_state_dict(module.enhance[depth].state_dict())
        sides = (torch.nn.functional.adaptive_avg_pool3d(side[depth], grid) for side in (teacher, student))
        first, second = (alone(side) for side in sides)
        expected.append((first - second).square().mean())
    torch.testing.assert_close(module(teacher, student), torch.stack(expected).mean())


def test_volumes_are_pooled_to_at_most_32_voxels_a_side_and_images_are_not():
    assert pooled_shape((512, 400)) == (512, 400)
    assert pooled_shape((20, 64, 33)) == (20, 32, 32)
    volume = torch.rand(1, 2, 4, 64, 33)
    assert pool(volume).shape == (1, 2, 4, 32, 32)
    torch.testing.assert_close(pool(volume).mean(), volume.mean(), rtol=0.05, atol=0)
    small = torch.rand(1, 2, 8, 8, 8)
    assert pool(small) is small
