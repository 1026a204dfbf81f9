"""RandConv: values of the specification, agreement with a naive loop, properties, and the views of a step."""

import itertools

import pytest
import torch
from plain_student import PlainStudent, a_batch, a_step

from nnunet_dg.baselines.randconv import RandConv, draw_kernel, random_convolution
from nnunet_dg.errors import SettingsError
from nnunet_dg.mechanisms.views import view_divergences
from nnunet_dg.outside import Outside


def test_hand_value():
    """The example of the specification: kernel (0.5, -0.25, 1), and a share of 0.6 of the convolved signal."""
    image, kernel = torch.tensor([[[[1.0, 2, 0, -1]]]]), torch.tensor([[[[0.5, -0.25, 1]]]])
    result = random_convolution(image, kernel, 0.6)
    torch.testing.assert_close(result, torch.tensor([[[[1.45, 0.8, 0, -0.25]]]]))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_agrees_with_a_loop_over_samples_voxels_and_channels(dims, size):
    torch.manual_seed(0)
    image = torch.randn(2, 2, *(4, 3, 5)[:dims], dtype=torch.float64)
    kernel = torch.randn(2, 2, *[size] * dims, dtype=torch.float64)
    result = random_convolution(image, kernel, 0.7)
    reach, shape = size // 2, image.shape[2:]
    for sample, voxel in itertools.product(range(2), itertools.product(*map(range, shape))):
        value = torch.zeros(2, dtype=torch.float64)
        for offset in itertools.product(range(-reach, reach + 1), repeat=dims):
            source = tuple(v + o for v, o in zip(voxel, offset, strict=True))
            if all(0 <= s < n for s, n in zip(source, shape, strict=True)):
                value += (
                    kernel[(slice(None), slice(None), *(o + reach for o in offset))]
                    @ image[(sample, slice(None), *source)]
                )
        expected = 0.7 * value + 0.3 * image[(sample, slice(None), *voxel)]
        torch.testing.assert_close(result[(sample, slice(None), *voxel)], expected)


def test_a_share_of_zero_is_the_image_and_samples_are_independent():
    image, kernel = torch.randn(2, 1, 6, 6), torch.randn(1, 1, 3, 3)
    assert torch.equal(random_convolution(image, kernel, 0.0), image)
    torch.testing.assert_close(random_convolution(image[1:], kernel), random_convolution(image, kernel)[1:])


def test_3d_with_one_slice_equals_2d():
    image, kernel = torch.randn(1, 2, 6, 5), torch.randn(2, 2, 3, 3)
    flat = random_convolution(image, kernel)
    torch.testing.assert_close(random_convolution(image[:, :, None], kernel[:, :, None])[:, :, 0], flat)


def test_kernels_have_four_sizes_and_keep_the_variance_of_noise():
    torch.manual_seed(0)
    kernels = [draw_kernel(2, 2) for _ in range(2000)]
    sizes = torch.tensor([kernel.shape[-1] for kernel in kernels])
    assert all((sizes == size).float().mean() == pytest.approx(0.25, abs=0.04) for size in (1, 3, 5, 7))
    gains = torch.stack([kernel.square().sum((1, 2, 3)).mean() for kernel in kernels])
    assert gains.mean().item() == pytest.approx(1, abs=0.05)  # of the variance of each output channel
    assert draw_kernel(3, 3).shape[:2] == (3, 3)
    assert draw_kernel(1, 3).ndim == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_constant_images_are_finite(dtype):
    student = PlainStudent(dims=3)
    training = RandConv(p=1.0).training_module(student)
    for image in (torch.randn(1, 1, 8, 8, 8) * 100, torch.full((1, 1, 8, 8, 8), 3.0), torch.ones(1, 1, 1, 1, 1)):
        with torch.autocast("cpu", torch.bfloat16):
            changed = training.augment(a_batch(image.to(dtype), torch.zeros(1, 1, 8, 8, 8))).data
        assert changed.dtype == dtype
        assert torch.isfinite(changed).all()
        assert not changed.requires_grad


@pytest.mark.parametrize("dims", [2, 3])
def test_each_channel_keeps_its_mean_and_deviation(dims):
    torch.manual_seed(0)
    data = torch.randn(3, 2, *[12] * dims) * 5 - 2
    changed = RandConv(p=1.0).training_module(PlainStudent(dims, 2)).augment(a_batch(data, torch.zeros(3))).data
    axes = tuple(range(2, dims + 2))
    torch.testing.assert_close(changed.mean(axes), data.mean(axes), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(changed.std(axes), data.std(axes), atol=1e-3, rtol=1e-3)
    assert (changed != data).all()


def test_all_samples_have_the_same_kernel():
    torch.manual_seed(0)
    data = torch.randn(1, 1, 8, 8).repeat(2, 1, 1, 1)
    changed = RandConv(p=1.0, mix=True).training_module(PlainStudent()).augment(a_batch(data, torch.zeros(2))).data
    torch.testing.assert_close(changed[0], changed[1])


def shares(monkeypatch, **settings):
    """The shares with which 300 batches are convolved, and the number of batches that are not."""
    given = []

    def convolved(images, kernel, share):
        given.append(share)
        return images + 1

    monkeypatch.setattr("nnunet_dg.baselines.randconv.random_convolution", convolved)
    torch.manual_seed(0)
    training = RandConv(**settings).training_module(PlainStudent())
    batches = [a_batch(torch.randn(2, 1, 4, 4), torch.zeros(2)) for _ in range(300)]
    return given, sum(torch.equal(training.augment(batch).data, batch.data) for batch in batches)


def test_batches_are_convolved_with_probability_p(monkeypatch):
    given, unchanged = shares(monkeypatch, p=0.3)
    assert set(given) == {1.0}
    assert len(given) / 300 == pytest.approx(0.3, abs=0.08)
    assert len(given) + unchanged == 300


def test_shares_are_uniform_if_mixed(monkeypatch):
    given, unchanged = shares(monkeypatch, p=1.0, mix=True)
    assert unchanged == 0
    assert torch.tensor(given).mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.tensor(given).var().item() == pytest.approx(1 / 12, abs=0.02)


def test_the_consistency_of_three_versions():
    torch.manual_seed(0)
    student = PlainStudent(rest=1)
    data, target = torch.randn(2, 2, 8, 8), torch.randint(2, (2, 1, 8, 8))
    training = RandConv(p=1.0, consistency=10).training_module(student)
    _, terms = a_step(training, student, a_batch(data, target, channels=1))
    assert len(student.passes) == 3
    assert len({float(view[0, 0].sum() + view[0, 0, 0, 0]) for view in student.passes}) == 3
    assert all(torch.equal(view[:, 1], data[:, 1]) for view in student.passes)
    logits = [student.network(view) for view in student.passes]
    torch.testing.assert_close(terms["view_consistency"], view_divergences(logits, to_mean=True).mean())
    torch.testing.assert_close(terms["segmentation"], student.loss(logits[0], target))
    assert training.weights(0) == {"view_consistency": 10}


def test_each_version_has_its_own_decision_kernel_and_share(monkeypatch):
    given = []

    def convolved(images, kernel, share):
        given.append((share, tuple(kernel.flatten().tolist())))
        return images + 1

    monkeypatch.setattr("nnunet_dg.baselines.randconv.random_convolution", convolved)
    torch.manual_seed(0)
    training = RandConv(p=0.5, mix=True, consistency=10).training_module(PlainStudent())
    numbers = []
    for _ in range(400):
        before = len(given)
        training.augment(a_batch(torch.randn(2, 1, 4, 4), torch.zeros(2)))
        numbers.append(len(given) - before)
    assert torch.tensor(numbers).float().mean().item() == pytest.approx(1.5, abs=0.15)
    assert torch.tensor(numbers).float().var().item() == pytest.approx(0.75, abs=0.15)  # decisions are independent
    for parts in zip(*given, strict=True):
        assert len(set(parts)) == len(given)


def test_the_consistency_of_regions():
    torch.manual_seed(0)
    student = PlainStudent(outputs=3, regions=True)
    batch = a_batch(torch.randn(2, 1, 8, 8), torch.randint(2, (2, 3, 8, 8)))
    _, terms = a_step(RandConv(p=1.0, consistency=10).training_module(student), student, batch)
    logits = [student.network(view) for view in student.passes]
    expected = view_divergences(logits, regions=True, to_mean=True).mean()
    torch.testing.assert_close(terms["view_consistency"], expected)


@pytest.mark.parametrize("keep", [True, False])
def test_masked_voxels_and_padding_stay_zero_if_keep_outside_is_set(keep):
    torch.manual_seed(0)
    student = PlainStudent(channels=2, outside=Outside((True, True), (True, True)))
    data = torch.randn(2, 2, 8, 8) + 5
    data[:, :, :, :3] = 0
    training = RandConv(p=1.0, keep_outside=keep).training_module(student)
    changed = training.augment(a_batch(data, torch.zeros(2))).data
    assert bool((changed[..., :3] == 0).all()) == keep
    assert (changed[..., 3:] != data[..., 3:]).all()


@pytest.mark.parametrize(("name", "value"), [("p", 2), ("mix", 0), ("consistency", -1), ("keep_outside", "yes")])
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be .*; got {value!r}"):
        RandConv(**{name: value})
