"""Dual normalization: values of the specification, agreement with a loop and with batch norm, and the choice."""

import pytest
import torch
from helpers import set_nnunets_folders
from on_noise import initialized
from small_trainers import CPU, batch, planned, step
from torch import nn

from nnunet_dg.baselines.dsbn import DSBN, draw_styles, restyled
from nnunet_dg.errors import SettingsError
from nnunet_dg.mechanisms.domain_norm import Branches, BranchNorm, NearestBranchNetwork, replace_norms
from nnunet_dg.method import Batch
from nnunet_dg.training.trainer import MethodsTrainer


@pytest.mark.parametrize(
    ("strength", "x", "expected"),
    [
        (0.5, [-1, -0.75, -0.5, 0, 0.5, 1], [-1, -0.484318, -0.229425, 0, 0.229425, 1]),
        (0.75, [-1, -0.75, -0.5, 0, 0.5, 1], [-1, -0.322845, -0.124537, 0, 0.124537, 1]),
    ],
)
def test_hand_values_of_increasing_curves(strength, x, expected):
    """Example BEZ-1 of the specification."""
    x = torch.tensor([[x]], dtype=torch.float32)
    actual = restyled(x, torch.tensor([strength]), torch.tensor([False]))
    torch.testing.assert_close(actual[0, 0], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(0.0, [-1, 0.75, 0.5, 0, -0.5, -1]), (0.5, [-1, 0.484318, 0.229425, 0, -0.229425, -1])],
)
def test_hand_values_of_decreasing_curves_with_the_background_put_back(strength, expected):
    """Example BEZ-2 of the specification."""
    x = torch.tensor([[[-1, -0.75, -0.5, 0, 0.5, 1]]])
    actual = restyled(x, torch.tensor([strength]), torch.tensor([True]))
    torch.testing.assert_close(actual[0, 0], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


def by_bisection(x, v):
    """The curve from its control points, with the parameter at which it has the abscissa x."""

    def at(u, points):
        b = (1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3
        return sum(weight * point for weight, point in zip(b, points, strict=True))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle, (-1, -v, v, 1)) < x else (low, middle)
    return at(low, (-1, v, -v, 1))


@pytest.mark.parametrize("v", [0.0, 0.2, 1 / 3, 0.5, 0.75, 0.9])
def test_agrees_with_the_control_points_and_bisection(v):
    x = torch.linspace(-1, 1, 81)
    expected = torch.tensor([by_bisection(float(value), v) for value in x])
    actual = restyled(x[None, None], torch.tensor([v]), torch.tensor([False]))[0, 0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)
    assert (actual.diff() > 0).all()
    torch.testing.assert_close(actual, -actual.flip(0))


@pytest.mark.parametrize("spatial", [(6, 5), (4, 3, 5)])
def test_every_sample_has_its_curve_and_every_channel_its_range(spatial):
    torch.manual_seed(0)
    images = 100 * torch.randn(3, 2, *spatial) + 7
    strength, decreasing = torch.tensor([0.0, 0.5, 0.75]), torch.tensor([False, False, True])
    out = restyled(images, strength, decreasing)
    for sample in range(3):
        for channel in range(2):
            image, new = images[sample, channel].flatten(), out[sample, channel].flatten()
            low, high = image.min(), image.max()
            unit = 2 * (image - low) / (high - low) - 1
            curve = torch.tensor([by_bisection(float(value), float(strength[sample])) for value in unit])
            expected = low + ((-curve if decreasing[sample] else curve) + 1) / 2 * (high - low)
            expected = torch.where(image == low, low, expected)
            torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-2)


def test_constant_images_and_their_dtype_stay():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        images = torch.full((1, 1, 4, 4), 5.0, dtype=dtype)
        out = restyled(images, torch.tensor([0.5]), torch.tensor([True]))
        assert torch.equal(out, images)
        assert out.dtype == dtype


X = torch.tensor([[[1.0, 3, 5, 7]], [[0, 2, 2, 4]], [[10, 10, 14, 14]]])  # (sample, channel, voxel)


def norm(of_sample, channels=1):
    branches = Branches()
    branches.of_sample = torch.tensor(of_sample)
    return BranchNorm(channels, branches)


def test_hand_value_of_a_training_pass():
    """Example DSBN-1: two samples of the first branch, one of the second."""
    module = norm([0, 0, 1])
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0], [2]]))
        module.bias.copy_(torch.tensor([[0.0], [-1]]))
    expected = torch.tensor(
        [
            [-0.942808, 0, 0.942808, 1.885616],
            [-1.414212, -0.471404, -0.471404, 0.471404],
            [-2.999998, -2.999998, 0.999998, 0.999998],
        ]
    )
    torch.testing.assert_close(module(X)[:, 0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(module.running_mean.flatten(), torch.tensor([0.3, 1.2]), rtol=0, atol=1e-6)
    torch.testing.assert_close(module.running_var.flatten(), torch.tensor([1.414286, 1.433333]), rtol=0, atol=1e-6)


def choosing():
    """A network of one norm with the statistics of example DSBN-2."""
    network = NearestBranchNetwork(nn.Sequential(nn.BatchNorm1d(1)))
    module = network.network[0]
    with torch.no_grad():
        module.running_mean.copy_(torch.tensor([[3.0], [11]]))
        module.running_var.copy_(torch.tensor([[5.0], [4]]))
        module.weight.copy_(torch.tensor([[1.0], [2]]))
        module.bias.copy_(torch.tensor([[0.0], [-1]]))
    return network.eval(), module


def test_hand_value_of_the_choice():
    """Example DSBN-2: the distances are 9 and 0."""
    network, module = choosing()
    x = torch.tensor([[[9.0, 9, 13, 13]]])
    for branch, expected in enumerate((9.0, 0.0)):
        network.branches.of_sample = torch.tensor([branch])
        module(x)
        assert network.branches.distances[-1].item() == pytest.approx(expected, abs=1e-6)
    expected = torch.tensor([-2.999998, -2.999998, 0.999998, 0.999998])
    torch.testing.assert_close(network(x)[0, 0], expected, rtol=0, atol=1e-6)


def test_each_sample_of_a_batch_has_its_own_choice():
    network, _ = choosing()
    x = torch.tensor([[[9.0, 9, 13, 13]], [[1.0, 3, 3, 5]], [[9.0, 9, 13, 13]]])
    torch.testing.assert_close(network(x), torch.cat([network(sample[None]) for sample in x]))
    torch.testing.assert_close(network(x)[1, 0], (x[1, 0] - 3) / (5 + 1e-5) ** 0.5)
    network.network.append(nn.Identity())
    network.network.forward = lambda x: [network.network[0](x), -network.network[0](x)]  # like deep supervision
    first, second = network(x)
    torch.testing.assert_close(second, -first)


@pytest.mark.parametrize("spatial", [(5, 4), (3, 4, 2)])
def test_each_branch_equals_a_batch_norm_of_its_samples(spatial):
    torch.manual_seed(0)
    module = norm([1, 0, 1, 1, 0], channels=3)
    convolution = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(spatial)]
    plain = [convolution(3), convolution(3)]
    for branch, other in enumerate(plain):
        other.load_state_dict({**other.state_dict(), "weight": torch.rand(3), "bias": torch.rand(3)})
        with torch.no_grad():
            module.weight[branch].copy_(other.weight)
            module.bias[branch].copy_(other.bias)
    for _ in range(3):
        x = 3 * torch.randn(5, 3, *spatial) + 2
        out = module(x)
        for branch, members in ((0, [1, 4]), (1, [0, 2, 3])):
            torch.testing.assert_close(out[members], plain[branch](x[members]), rtol=1e-5, atol=1e-5)
    for branch, other in enumerate(plain):
        torch.testing.assert_close(module.running_mean[branch], other.running_mean)
        torch.testing.assert_close(module.running_var[branch], other.running_var)
    module.eval()
    for branch, other in enumerate(plain):
        module.branches.of_sample = torch.full((5,), branch)
        torch.testing.assert_close(module(x), other.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_branch_with_a_single_voxel_keeps_finite_statistics():
    module = norm([0, 1, 1])
    module(torch.randn(3, 1, 1))
    assert module.running_var.isfinite().all()


def test_a_branch_without_samples_keeps_its_statistics_and_has_a_gradient():
    module = norm([1, 1])
    module(torch.randn(2, 1, 8)).square().sum().backward()
    assert module.running_mean[0].item() == 0
    assert module.running_var[0].item() == 1
    assert module.running_mean[1].item() != 0
    assert module.weight.grad[0].item() == 0
    assert module.weight.grad[1].item() != 0


def test_gradients_are_right_and_finite_on_constant_input():
    torch.manual_seed(0)
    module = norm([0, 1, 0], channels=2).double()
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: module(x) * weights, x)
    constant = torch.ones(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    (module(constant) * weights).sum().backward()
    assert torch.isfinite(constant.grad).all()
    assert torch.isfinite(module.weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalized_in_float32(dtype):
    x = (300 * torch.randn(2, 1, 40, 40, 40)).to(dtype)
    out = norm([0, 1])(x)
    assert out.dtype == dtype
    assert out.float().std().item() == pytest.approx(1, abs=0.05)


def test_norms_are_replaced_once_where_nnunet_refers_to_them_twice(make):
    network = make().network
    norms = {module for module in network.modules() if isinstance(module, BranchNorm)}
    assert len(norms) == 10
    assert not any("InstanceNorm" in type(module).__name__ for module in network.modules())
    block = network.network.encoder.stages[0][0].convs[0]
    assert block.norm is block.all_modules[1]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # as nnU-Net does on several GPUs
    assert norms == {module for module in converted.modules() if isinstance(module, BranchNorm)}


@pytest.mark.parametrize(("module", "name"), [(nn.GroupNorm(1, 4), "a GroupNorm"), (nn.Identity(), "no norm")])
def test_other_norms_are_refused(module, name):
    with pytest.raises(SettingsError, match=f"with batch or instance norm; it has {name}"):
        replace_norms(nn.Sequential(nn.Conv2d(1, 4, 1), module), Branches())


def test_both_kinds_of_curves_are_in_every_batch_of_at_least_two():
    torch.manual_seed(0)
    for p in (0.01, 0.5, 1.0):
        for _ in range(50):
            changed, _, decreasing = draw_styles(2, p, (0.0, 0.5))
            assert decreasing.sum() == 1
            assert changed[decreasing].all()
    draws = [draw_styles(1, 0.5, (0.0, 0.5, 0.75)) for _ in range(2000)]
    changed, strength, decreasing = (torch.cat(parts).float() for parts in zip(*draws, strict=True))
    assert changed.mean().item() == pytest.approx(0.5, abs=0.04)
    assert decreasing.mean().item() == pytest.approx(0.25, abs=0.03)
    for value in (0.0, 0.5, 0.75):
        assert (strength == value).float().mean().item() == pytest.approx(1 / 3, abs=0.04)
    assert not draw_styles(4, 0.0, (0.5,))[0].any()
    assert not draw_styles(4, 0.0, (0.5,))[2].any()


@pytest.fixture
def make(tmp_path, monkeypatch):
    set_nnunets_folders(monkeypatch, tmp_path)

    def make(norm="InstanceNorm", masked=False, plain=False, **settings):
        class Trainer(MethodsTrainer):
            methods = () if plain else (DSBN(),)

        content = planned() | {"nnunet_dg": {"dsbn": settings}}
        configuration = content["configurations"]["3d_fullres"]
        configuration["use_mask_for_norm"] = [masked]
        configuration["architecture"]["arch_kwargs"]["norm_op"] = f"torch.nn.{norm}3d"
        torch.manual_seed(0)
        return initialized(Trainer, content, CPU)

    return make


def test_the_curve_of_a_sample_decides_its_norm_and_voxels_outside_stay(make):
    trainer = make(masked=True, p=1.0, strengths=[0.0])
    module = trainer.auxiliary["dsbn"]
    images = torch.randn(2, 1, 16, 16, 16)
    images[:, :, :8] = 0
    for _ in range(4):
        previous = torch.rand(2, 3, 16, 16, 16)
        given = Batch(torch.cat([images, previous], 1), torch.zeros(2), ("a", "b"), 1)
        changed = module.augment(given)
        assert torch.equal(changed.data[:, 1:], previous)
        assert torch.equal(changed.images[:, :, :8], images[:, :, :8])
        for sample, branch in enumerate(trainer.network.branches.of_sample.tolist()):
            inside, new = images[sample, 0, 8:], changed.images[sample, 0, 8:]
            kept = inside == inside.min()
            expected = torch.where(kept, inside, inside.min() + inside.max() - inside) if branch else inside
            torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-4)


def test_without_curves_training_equals_batch_norm(make):
    """Only the first branch is trained. The second has other statistics, so that the first is the nearer one."""
    trainer, plain = make(p=0.0), make("BatchNorm", plain=True)
    for seed in range(3):
        losses = [float(step(t, batch(t, seed), seed)["loss"]) for t in (trainer, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for key, value in plain.network.state_dict().items():
        ours = trainer.network.state_dict().get(f"network.{key}")
        if ours is not None:
            expected = ours[0] if ours.ndim == 2 and value.ndim == 1 else ours
            torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-3, msg=key)


def test_other_numbers_of_samples_in_training_mode_are_refused(make):
    trainer = make()
    step(trainer, batch(trainer))
    with pytest.raises(ValueError, match="branch of 2 samples is known, but a pass in training mode has 3"):
        trainer.network.train()(torch.rand(3, 1, 16, 16, 16))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_network_compiles_to_one_graph(mode):
    layers = nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.LeakyReLU(inplace=True), nn.Conv2d(4, 2, 1)
    network = NearestBranchNetwork(nn.Sequential(*layers)).train(mode == "train")
    network.branches.of_sample = torch.tensor([0, 1])
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for branch in ([0, 1], [1, 0]):
        network.branches.of_sample = torch.tensor(branch)
        data = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(compiled(data), network(data), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.5}, r"p must be a probability in \[0, 1\]; got 1\.5"),
        ({"strengths": []}, r"strengths must be a list of numbers in \[0, 0\.9\]; got \[\]"),
        ({"strengths": [1.0]}, r"strengths must be a list of numbers in \[0, 0\.9\]; got \[1\.0\]"),
        ({"strengths": 0.5}, r"strengths must be a list of numbers in \[0, 0\.9\]; got 0\.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        DSBN(**settings)
