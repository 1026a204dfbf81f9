"""Frequency-domain content enhancement and the alignment of enhanced features."""

import numpy as np
import pytest
import torch
from fixed_alignment import trained
from spatial_alignment import spatial_alignment
from torch.nn import functional as F

from nnunet_dg.tinymig import ContentAlignment, FrequencyContentEnhancement, localized_representation_alignment
from nnunet_dg.tinymig.alignment import pool, pooled_shape
from nnunet_dg.tinymig.content import hermitian
from nnunet_dg.tinymig.spectral import scaled

SHAPES = [(6, 8), (7, 5), (4, 6, 8), (5, 7, 3)]


def opened(module):
    """The module with filters that pass everything and a weight of one for every channel."""
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


def tied(half, shape):
    """The half spectrum with each frequency averaged with its mirror image, if the half contains both."""
    result = half.copy()
    for k in np.ndindex(half.shape[-len(shape) :]):
        if k[-1] in (0, shape[-1] / 2):
            mirrored = tuple(-i % n for i, n in zip(k, shape, strict=True))
            result[(..., *k)] = (half[(..., *k)] + np.conj(half[(..., *mirrored)])) / 2
    return result


def whole(half, shape):
    """The whole spectrum: frequencies of the missing half are the conjugates of their mirror images."""
    result = np.zeros(shape, complex)
    for k in np.ndindex(*shape):
        mirrored = tuple(-i % n for i, n in zip(k, shape, strict=True))
        result[k] = half[k] if k[-1] < half.shape[-1] else np.conj(half[mirrored])
    return result


@pytest.mark.parametrize("shape", [*SHAPES, (4, 1), (3, 2), (3, 4, 2)])
def test_a_filtered_spectrum_is_that_of_a_real_feature(shape):
    torch.manual_seed(0)
    module = FrequencyContentEnhancement(1, shape, refine=False).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=3)
    x = torch.randn(1, 1, *shape, dtype=torch.double) - 0.5
    axes = tuple(range(2, x.ndim))
    spectrum, _ = module.filtered(torch.fft.rfftn(x, dim=axes))
    half = spectrum[0, 0].detach().numpy()
    np.testing.assert_allclose(tied(half, shape), half, atol=1e-12)
    expected = np.fft.ifftn(whole(half, shape))
    np.testing.assert_allclose(expected.imag, 0, atol=1e-12)
    inverse = torch.fft.irfftn(spectrum, s=shape, dim=axes)[0, 0].detach()
    np.testing.assert_allclose(inverse, expected.real, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (4, 1), (3, 4, 2)])
def test_tying_keeps_the_spectrum_of_a_real_signal_and_changes_only_the_shared_planes(shape):
    half = torch.fft.rfftn(torch.randn(2, *shape, dtype=torch.double), dim=tuple(range(1, 1 + len(shape))))
    torch.testing.assert_close(hermitian(half, shape), half)
    other = torch.randn_like(half)
    torch.testing.assert_close(hermitian(other, shape), torch.from_numpy(tied(other.numpy(), shape)))


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
        amplitude = amplitude * tied(sigmoid(module.amplitude_filter), shape)
    if "phase" not in off:
        phase = phase * tied(sigmoid(module.phase_filter), shape)
    expected = np.fft.irfftn(amplitude * np.exp(1j * phase), s=shape, axes=axes)
    if "refine" not in off:
        squeezed = phase.mean(axes)
        first, _, second, _ = module.refiner
        w, b, v, c = (p.detach().double().numpy() for p in (first.weight, first.bias, second.weight, second.bias))
        weights = 1 / (1 + np.exp(-(np.maximum(squeezed @ w.T + b, 0) @ v.T + c)))
        expected = expected * weights.reshape(2, 4, *[1] * len(shape))
    np.testing.assert_allclose(module(x).detach(), expected, rtol=1e-3, atol=1e-4)


def test_filters_are_initialized_to_one_and_have_one_value_per_frequency():
    module = FrequencyContentEnhancement(8, (6, 5))
    for parameter in (module.amplitude_filter, module.phase_filter):
        assert parameter.shape == (6, 3)
        assert (parameter == 1).all()


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    module = FrequencyContentEnhancement(2, (3, 4)).double()
    x = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


@pytest.mark.parametrize(("value", "single"), [(0.0, 0.0), (3.0, 3.0), (0.0, 1e-20), (0.0, 1e-30)])
def test_gradients_are_finite_for_constant_features_with_and_without_a_tiny_change(value, single):
    module = FrequencyContentEnhancement(3, (4, 5))
    x = torch.full((1, 3, 4, 5), value)
    x[0, 0, 0, 0] = single
    x.requires_grad_()
    module(x).square().sum().backward()
    for gradient in (x.grad, *(p.grad for p in module.parameters())):
        assert torch.isfinite(gradient).all()


def test_is_computed_in_single_precision_under_autocast():
    module, x = FrequencyContentEnhancement(3, (4, 5)), torch.randn(1, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        enhanced = module(x)
    assert enhanced.dtype == torch.float32
    torch.testing.assert_close(enhanced, module(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", ["free", "paper"])
def test_alignment_is_computed_in_single_precision_under_autocast(dtype, scale):
    """In float16, shares of 1 / 32768**2 vanish, and squares of low frequencies overflow."""
    torch.manual_seed(0)
    module = ContentAlignment([3], [(32, 32, 32)], scale=scale)
    features = [torch.randn(1, 3, 32, 32, 32) + 5 for _ in range(2)]
    with torch.autocast("cpu", dtype):
        term = module(features[:1], features[1:])
    torch.testing.assert_close(term, module(features[:1], features[1:]))


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"must have shape \(B, 3, 4, 5\); got \(1, 3, 4, 6\)"):
        FrequencyContentEnhancement(3, (4, 5))(torch.zeros(1, 3, 4, 6))


def test_alignment_computed_by_hand():
    teacher = [torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 1, 1)]
    student = [torch.full((1, 1, 2, 2), 2.0), torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)]
    assert float(localized_representation_alignment(teacher, student)) == (4 + 5) / 2


@pytest.mark.parametrize(
    "parts", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
@pytest.mark.parametrize("scale", ["free", "paper"])
def test_both_sides_are_enhanced_by_the_same_filters_at_each_depth(parts, scale):
    torch.manual_seed(0)
    widths, grids = (4, 8), ((40, 4, 4), (6, 4, 4))
    module = ContentAlignment(widths, grids, *parts, scale=scale)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    teacher, student = ([torch.randn(2, w, *g) for w, g in zip(widths, grids, strict=True)] for _ in range(2))
    expected, gains = [], []
    for depth, (width, grid) in enumerate(zip(widths, ((32, 4, 4), (6, 4, 4)), strict=True)):
        enhance = FrequencyContentEnhancement(
            width, grid, **dict(zip(("amplitude", "phase", "refine"), parts, strict=True))
        )
        enhance.load_state_dict(module.enhance[depth].state_dict())
        sides = []
        for side in (teacher, student):
            pooled = F.adaptive_avg_pool3d(side[depth], grid)
            enhanced = enhance(pooled).detach().flatten(2)
            gains.append((enhanced.std(2) / pooled.flatten(2).std(2)).mean())
            if scale == "free":
                enhanced = enhanced - enhanced.mean(2, keepdim=True)
                enhanced = enhanced / enhanced.square().mean(2, keepdim=True).sqrt()
            sides.append(enhanced)
        expected.append((sides[0] - sides[1]).square().mean())
    torch.testing.assert_close(module(teacher, student), torch.stack(expected).mean(), rtol=1e-3, atol=1e-4)
    assert module.take_gain() == pytest.approx(float(torch.stack(gains).mean()), rel=1e-3)
    assert np.isnan(module.take_gain())


def test_a_batch_processed_in_parts_gives_the_same_result(monkeypatch):
    torch.manual_seed(0)
    results = []
    teacher, student = torch.randn(5, 2, 6, 6), torch.randn(5, 2, 6, 6)
    module = ContentAlignment([2], [(6, 6)])
    for most in (2**22, 2 * 72, 1):
        monkeypatch.setattr("nnunet_dg.tinymig.teaching.MOST_NUMBERS", most)
        feature = student.clone().requires_grad_()
        module.zero_grad()
        term = module([teacher], [feature])
        term.backward()
        weights = [p.grad.clone() for p in module.parameters()]
        results.append([term.detach(), torch.tensor(module.take_gain()), feature.grad, *weights])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


def spectrum(x):
    return torch.view_as_real(torch.fft.rfftn(x, dim=tuple(range(2, x.ndim)))).flatten(2)


def scale_free(enhanced, given):
    """The enhanced feature at the scale at which it is compared, and its gain."""
    spatial = given.shape[2:]
    result = scaled(spectrum(given), spectrum(enhanced), torch.ones(given.shape[:2]), spatial)
    numbers = (result.numbers * result.scale_free.unsqueeze(-1)).unflatten(2, (*spatial[:-1], -1, 2))
    back = torch.fft.irfftn(torch.view_as_complex(numbers), s=spatial, dim=tuple(range(2, given.ndim)))
    return back - back.mean(tuple(range(2, given.ndim)), keepdim=True), result.gain


def test_scale_free_computed_by_hand():
    given = torch.tensor([[[[0.0, 2.0]]]])
    result, gain = scale_free(3 * given + 5, given)
    torch.testing.assert_close(result, torch.tensor([[[[-1.0, 1.0]]]]), rtol=1e-4, atol=0)
    assert float(gain) == pytest.approx(3)


def test_the_gain_of_a_constant_feature_is_the_ratio_of_the_means():
    given = torch.full((1, 2, 4, 5), 2.0)
    torch.testing.assert_close(scale_free(3 * given, given)[1], torch.full((1, 2), 3.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("factor", [1e-6, 0.1, 100.0])
def test_the_result_does_not_depend_on_the_scale_of_the_enhancement(factor):
    given = torch.randn(2, 3, 4, 5)
    enhanced = torch.randn(2, 3, 4, 5)
    result, _ = scale_free(enhanced, given)
    torch.testing.assert_close(scale_free(factor * enhanced + 2 * factor, given)[0], result)
    expected = enhanced - enhanced.mean((2, 3), keepdim=True)
    expected = expected / expected.square().mean((2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", ["free", "paper"])
@pytest.mark.parametrize("shape", [*SHAPES, (4, 1), (3, 2)])
def test_the_alignment_of_spectra_is_that_of_features(shape, scale):
    torch.manual_seed(0)
    module = ContentAlignment([4], [shape], scale=scale).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    sides = [(torch.randn(2, 4, *shape, dtype=torch.double) + 2).requires_grad_() for _ in range(2)]
    term = module(sides[:1], sides[1:])
    expected, gain = spatial_alignment(module.enhance[0], *sides, scale)
    torch.testing.assert_close(term, expected, rtol=1e-9, atol=0)
    assert module.take_gain() == pytest.approx(gain.item(), rel=1e-9)
    inputs = (*sides, *module.parameters())
    for actual, value in zip(*(torch.autograd.grad(t, inputs) for t in (term, expected)), strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("value", "noise"), [(0.0, 0.0), (3.0, 0.0), (3.0, 1e-6)])
def test_gradients_of_blank_features_are_bounded(value, noise):
    feature = (torch.full((1, 2, 8, 8), value) + noise * torch.randn(1, 2, 8, 8)).requires_grad_()
    module = ContentAlignment([2], [(8, 8)])
    module([torch.randn(1, 2, 8, 8)], [feature]).backward()
    for gradient in (feature.grad, *(p.grad for p in module.parameters())):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 100


def test_gradients_of_the_alignment_agree_with_finite_differences():
    torch.manual_seed(0)
    teacher, student = (torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    module = ContentAlignment([2], [(3, 4)]).double()
    assert torch.autograd.gradcheck(lambda a, b: module([a], [b]), (teacher, student))


def shrunk(module, factor):
    """The same enhancement at another scale: weights of the amplitude filter and of channels times ``factor``."""
    with torch.no_grad():
        for enhance in module.enhance:
            weights = factor * enhance.amplitude_filter.sigmoid()
            enhance.amplitude_filter.copy_(torch.logit(weights))
            enhance.refiner[-2].bias.fill_(torch.logit(torch.tensor(0.5 * factor)))
            enhance.refiner[-2].weight.zero_()
    return module


def test_shrinking_filters_lower_the_papers_term_but_not_the_scale_free_one():
    torch.manual_seed(0)
    teacher, student = (torch.randn(2, 4, 8, 8) for _ in range(2))
    values = {}
    for scale in ("paper", "free"):
        for factor in (1.0, 0.1):
            module = shrunk(ContentAlignment([4], [(8, 8)], scale=scale), factor)
            feature = student.clone().requires_grad_()
            term = module([teacher], [feature])
            term.backward()
            values[scale, factor] = float(term.detach()), float(feature.grad.norm())
    assert values["paper", 0.1][0] == pytest.approx(1e-4 * values["paper", 1.0][0], rel=1e-3)
    assert values["free", 0.1] == pytest.approx(values["free", 1.0], rel=1e-3)


def test_with_unrelated_features_training_shrinks_the_papers_term_but_not_the_scale_free_one():
    (_, paper), (_, free) = (trained(scale, 300) for scale in ("paper", "free"))  # the benchmark has 3000 steps
    assert paper[-1].term < 0.7 * paper[0].term
    assert paper[-1].gradient < 0.85 * paper[0].gradient
    assert paper[-1].gain < 0.85 * paper[0].gain
    assert free[-1].gradient > 0.9 * free[0].gradient
    assert free[-1].gain > 0.98 * free[0].gain


@pytest.mark.parametrize(
    ("shape", "expected"), [((512, 400), (64, 64)), ((48, 65), (48, 64)), ((20, 64, 33), (20, 32, 32))]
)
def test_features_are_pooled_to_at_most_64_voxels_per_side_in_2d_and_32_in_3d(shape, expected):
    assert pooled_shape(shape) == expected
    feature = torch.rand(1, 2, *shape)
    assert pool(feature).shape == (1, 2, *expected)
    torch.testing.assert_close(pool(feature).mean(), feature.mean(), rtol=0.05, atol=0)
    small = torch.rand(1, 2, *[8] * len(shape))
    assert pool(small) is small
