"""GIN: values of the specification, agreement with a naive loop, properties, and the effect on a batch."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from nnunet_dg.baselines.gin import GIN, draw_layers, global_intensity_augmentation, random_view
from nnunet_dg.method import Batch
from nnunet_dg.outside import Outside


def one_by_one_kernels():
    first = torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1, 1), torch.tensor([[0.1, -0.2]])
    second = torch.tensor([1.0, 2.0]).reshape(1, 1, 2, 1, 1), torch.tensor([[0.3]])
    return [first, second]


def test_hand_value_of_one_by_one_kernels():
    """Example GIN-1 of the specification."""
    image = torch.tensor([[[[1.0, -2.0], [0.5, 3.0]]]])
    result = global_intensity_augmentation(image, one_by_one_kernels(), torch.tensor([0.25]))
    expected = torch.tensor([[[[1.230224, -0.669387], [0.677956, 3.439295]]]])
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)


def test_hand_value_of_a_share_of_zero():
    """Example GIN-2 of the specification: the image, except for the epsilon of the norm."""
    image = torch.tensor([[[[1.0, -2.0], [0.5, 3.0]]]])
    result = global_intensity_augmentation(image, one_by_one_kernels(), torch.tensor([0.0]))
    expected = torch.tensor([[[[0.999997, -1.999995], [0.499999, 2.999992]]]])
    torch.testing.assert_close(result, expected, atol=6e-7, rtol=0)


def test_hand_value_of_two_layers_along_a_line():
    """The example of the specification with the layers 2 x - 1 and (0.5, -0.25, 1) + 0.5, and a share of 0.3."""
    first = torch.full((1, 1, 1, 1, 1), 2.0), torch.tensor([[-1.0]])
    line = torch.tensor([[0.0, 0, 0], [0.5, -0.25, 1], [0, 0, 0]])
    second = line.reshape(1, 1, 1, 3, 3), torch.tensor([[0.5]])
    image = torch.tensor([1.0, 2, 0, -1]).reshape(1, 1, 1, 4)
    result = global_intensity_augmentation(image, [first, second], torch.tensor([0.3]))
    expected = torch.tensor([1.730040, 1.520370, 0.611195, -0.567298])
    torch.testing.assert_close(result.flatten(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_hand_value_of_a_laplacian_with_zero_padding(dims):
    """Example GIN-3 of the specification; in 3-D, the image is the only slice of a volume."""
    image = (torch.arange(9.0).reshape(1, 1, 3, 3) / 4 - 1).reshape(1, 1, *[1] * (dims - 2), 3, 3)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(*[1] * (dims - 1), 3, 3)
    if dims == 3:
        kernel = torch.nn.functional.pad(kernel.reshape(1, 3, 3), (0, 0, 0, 0, 1, 1))
    layer = kernel.reshape(1, 1, 1, *[3] * dims), torch.tensor([[0.5]])
    result = global_intensity_augmentation(image, [layer], torch.tensor([0.5]))
    expected = torch.tensor(
        [[1.317609, 0.658804, 0.790565], [0.395283, 0.263522, 0.131761], [-0.263522, -0.131761, -0.790565]]
    )
    torch.testing.assert_close(result.reshape(3, 3), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_agrees_with_loops_over_samples_voxels_and_channels(dims):
    torch.manual_seed(0)
    image = torch.randn(2, 2, *[4] * dims, dtype=torch.float64)
    layers = [(k.double(), b.double()) for k, b in draw_layers(2, 2, dims)]
    share = torch.tensor([0.2, 0.9])
    result = global_intensity_augmentation(image, layers, share)
    for sample in range(2):
        x = image[sample]
        for i, (kernel, bias) in enumerate(layers):
            x = convolved(x, kernel[sample], bias[sample])
            x = torch.where(x > 0, x, 0.01 * x) if i < len(layers) - 1 else x
        mixed = share[sample] * x + (1 - share[sample]) * image[sample]
        scale = image[sample].square().sum().sqrt() / (mixed.square().sum().sqrt() + 1e-5)
        torch.testing.assert_close(result[sample], scale * mixed, rtol=1e-6, atol=1e-8)


def convolved(x, kernel, bias):
    reach = kernel.shape[-1] // 2
    result = torch.zeros(len(kernel), *x.shape[1:], dtype=x.dtype)
    for voxel in itertools.product(*map(range, x.shape[1:])):
        for offset in itertools.product(range(-reach, reach + 1), repeat=len(voxel)):
            source = tuple(v + o for v, o in zip(voxel, offset, strict=True))
            if all(0 <= s < size for s, size in zip(source, x.shape[1:], strict=True)):
                weight = kernel[(slice(None), slice(None), *(o + reach for o in offset))]
                result[(slice(None), *voxel)] += weight @ x[(slice(None), *source)]
        result[(slice(None), *voxel)] += bias
    return result


def test_the_norm_of_each_sample_is_kept_and_samples_are_independent():
    torch.manual_seed(0)
    image = torch.randn(3, 2, 8, 8, 8) * torch.tensor([1.0, 10, 100]).reshape(3, 1, 1, 1, 1)
    layers, share = draw_layers(3, 2, 3), torch.rand(3)
    result = global_intensity_augmentation(image, layers, share)
    torch.testing.assert_close(result.flatten(1).norm(dim=1), image.flatten(1).norm(dim=1), rtol=1e-4, atol=0)
    own = [(kernel[1:2], bias[1:2]) for kernel, bias in layers]
    single = global_intensity_augmentation(image[1:2], own, share[1:2])
    torch.testing.assert_close(single, result[1:2], rtol=1e-4, atol=1e-4)


def test_a_share_of_zero_is_the_image_and_a_zero_image_stays_zero():
    image = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(global_intensity_augmentation(image, draw_layers(2, 1, 2), torch.zeros(2)), image)
    zero = torch.zeros(2, 1, 6, 6)
    assert (global_intensity_augmentation(zero, draw_layers(2, 1, 2), torch.ones(2)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    image = (100 * torch.randn(1, 1, 32, 32, 32)).to(dtype)  # the sum of its squares overflows in float16
    with torch.autocast("cpu", torch.bfloat16):
        result = global_intensity_augmentation(image, draw_layers(1, 1, 3), torch.ones(1))
    assert result.dtype == dtype
    assert torch.isfinite(result).all()
    assert not result.requires_grad


def test_kernel_sizes_are_drawn_for_each_layer_and_values_are_standard_normal():
    torch.manual_seed(0)
    drawn = [draw_layers(2, 1, 2) for _ in range(300)]
    sizes = torch.tensor([[kernel.shape[-1] for kernel, _ in layers] for layers in drawn])
    assert set(sizes.flatten().tolist()) == {1, 3}
    assert ((sizes == 3).float().mean(0) - 0.5).abs().max() < 0.1
    assert [kernel.shape[1:3] for kernel, _ in drawn[0]] == [(2, 1), (2, 2), (2, 2), (1, 2)]
    values = torch.cat([part.flatten() for layers in drawn for layer in layers for part in layer])
    assert values.mean().abs() < 0.03
    assert values.std() == pytest.approx(1, abs=0.03)


def test_each_sample_has_its_own_kernels_and_biases():
    torch.manual_seed(0)
    for kernel, bias in draw_layers(4, 2, 3):
        assert len(kernel.flatten(1).unique(dim=0)) == len(bias.unique(dim=0)) == 4


def test_each_sample_has_its_own_uniform_share(monkeypatch):
    """With the layer ``x + 1`` for all samples, the share s of an image of 1 and 0 gives the ratio 1 + s to s."""
    layer = torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1)
    monkeypatch.setattr(
        "nnunet_dg.baselines.gin.draw_layers",
        lambda samples, *given: [tuple(part.expand(samples, *part.shape[1:]) for part in layer)],
    )
    torch.manual_seed(0)
    views = random_view(torch.tensor([1.0, 0]).reshape(1, 1, 1, 2).repeat(2000, 1, 1, 1), GIN(), Outside.nowhere(1))
    one, zero = views.flatten(1).T
    share = zero / (one - zero)
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.var().item() == pytest.approx(1 / 12, abs=0.01)
    assert (share[::2] - share[1::2]).abs().mean().item() == pytest.approx(1 / 3, abs=0.03)


def test_the_number_of_layers_and_their_width_are_settings(monkeypatch):
    drawn = []

    def draw(*given):
        drawn.append(draw_layers(*given))
        return drawn[-1]

    monkeypatch.setattr("nnunet_dg.baselines.gin.draw_layers", draw)
    data = torch.randn(2, 1, 8, 8)
    training = GIN(layers=2, hidden=3).training_module(SimpleNamespace(outside=Outside.nowhere(1)))
    training.augment(Batch(data, data, ("a", "b"), 1))
    assert [tuple(kernel.shape[:3]) for kernel, _ in drawn[0]] == [(2, 3, 1), (2, 1, 3)]


@pytest.mark.parametrize("keep", [True, False])
def test_only_image_channels_change_and_masked_voxels_stay_zero_if_keep_outside_is_set(keep):
    outside = Outside((True, True), (True, True))
    data = torch.randn(2, 3, 8, 8) + 5
    data[:, :2, :, :3] = 0
    training = GIN(keep_outside=keep).training_module(SimpleNamespace(outside=outside))
    changed = training.augment(Batch(data, data, ("a", "b"), 2)).data
    assert torch.equal(changed[:, 2:], data[:, 2:])
    assert (changed[:, :2, :, 3:] != data[:, :2, :, 3:]).all()
    assert bool((changed[:, :2, :, :3] == 0).all()) == keep
