"""The predictors on a tiny network: what adapts, what stays, and reproducibility."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from plain_anatomix import random_weights
from torch import nn

from nnunet_dg.adaptation.alpha import AlphaPredictor
from nnunet_dg.adaptation.boosting import boosted
from nnunet_dg.adaptation.crops import Crops
from nnunet_dg.adaptation.entropy import entropy
from nnunet_dg.adaptation.norms import affine, batch_norms, own_statistics, trainable
from nnunet_dg.adaptation.predictor import AdaptationError
from nnunet_dg.adaptation.settings import SFB, Tent
from nnunet_dg.adaptation.sfb import SFBPredictor
from nnunet_dg.adaptation.tent import TentPredictor
from nnunet_dg.dropgen import DropGen
from nnunet_dg.dropgen.network import build_dropgen_network
from nnunet_dg.errors import SettingsError
from nnunet_dg.mechanisms.domain_norm import NearestBranchNetwork

NORMS = {"instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d, "instance2d": nn.InstanceNorm2d}


def network(norm="instance", outputs=3, seed=0):
    torch.manual_seed(seed)
    conv = nn.Conv2d if norm.endswith("2d") else nn.Conv3d
    layers = conv(1, 4, 3, padding=1), NORMS[norm](4, affine=True), nn.LeakyReLU(), nn.Dropout(0.5), conv(4, outputs, 1)
    return nn.Sequential(*layers).eval()


class Labels:
    """The part of nnU-Net's label manager that predicting logits needs."""

    def __init__(self, outputs, regions):
        self.num_segmentation_heads, self.has_regions = outputs, regions

    def convert_logits_to_segmentation(self, logits):
        return logits.argmax(0)


def plain(*networks, regions=False, patch=(8, 8, 8), batch=2):
    """nnU-Net's own predictor with the weights of several networks as folds."""
    predictor = nnUNetPredictor(use_gaussian=False, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    outputs = networks[0][-1].out_channels if isinstance(networks[0], nn.Sequential) else 3
    configuration = SimpleNamespace(patch_size=patch, batch_size=batch)
    manager = SimpleNamespace(get_label_manager=lambda _: Labels(outputs, regions))
    weights = [{name: value.clone() for name, value in n.state_dict().items()} for n in networks]
    predictor.manual_initialization(networks[0], manager, configuration, weights, {}, "trainer", None)
    return predictor


def volume(shape=(1, 10, 12, 9), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("norm", "shape", "patch"),
    [
        ("instance", (1, 10, 12, 9), (8, 8, 8)),
        ("batch", (1, 10, 6, 9), (8, 8, 8)),
        ("instance2d", (1, 3, 10, 6), (8, 8)),
    ],
)
@pytest.mark.parametrize("regions", [False, True])
def test_tent_lowers_the_entropy_of_a_volume_and_restores_the_weights(norm, shape, patch, regions):
    model, data = network(norm), volume(shape)
    before = state(model)
    predictor = TentPredictor(plain(model, regions=regions, patch=patch), Tent(steps=30, rate=0.3))
    unadapted = TentPredictor(plain(model, regions=regions, patch=patch), Tent(steps=0))
    first, adapted = (p.predict_logits_from_preprocessed_data(data) for p in (unadapted, predictor))
    assert adapted.shape == (3, *shape[1:])
    assert entropy(adapted[None], regions) < 0.99 * entropy(first[None], regions)
    assert same(state(model), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    (losses,) = predictor.notes["entropy_of_crops"]
    assert losses[1] < losses[0]


def test_without_steps_or_rate_tent_is_nnunets_own_prediction():
    expected = plain(network(), network(seed=1)).predict_logits_from_preprocessed_data(volume())
    for settings in (Tent(steps=0), Tent(steps=3, rate=0)):
        predictor = TentPredictor(plain(network(), network(seed=1)), settings)
        logits = predictor.predict_logits_from_preprocessed_data(volume())
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_has_as_many_crops_as_nnunets_batch(batch):
    for name, model in (("tent", network()), ("sfb", network(seed=1))):
        sizes = []
        model.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append((torch.is_grad_enabled(), *inputs)))
        if name == "tent":
            predictor = TentPredictor(plain(model, batch=batch), Tent(steps=2))
        else:
            predictor = SFBPredictor(plain(model, batch=batch), plain(network()), 1.0, SFB(rounds=1, steps=2))
        predictor.predict_logits_from_preprocessed_data(volume())
        assert [tuple(x.shape) for training, x in sizes if training] == [(batch, 1, 8, 8, 8)] * 2


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_tent_changes_scales_and_shifts_only(norm, monkeypatch):
    model, seen = network(norm), {}
    predictor = TentPredictor(plain(model), Tent(steps=2, rate=0.1))
    window = predictor.window_logits
    monkeypatch.setattr(predictor, "window_logits", lambda data: seen.update(state(model)) or window(data))
    before = state(model)
    predictor.predict_logits_from_preprocessed_data(volume())
    changed = {name for name in before if name in seen and not torch.equal(before[name], seen[name])}
    assert changed == {"1.weight", "1.bias"}
    assert predictor.adapted() == {"parameters": 8, "tensors": ["1.weight", "1.bias"], "frozen_extractors": []}
    assert same(state(model), before)


def test_tent_follows_a_naive_loop():
    """The crops of a volume that is as large as a patch are that volume, so there is no random choice."""
    model, data = network(), volume((1, 8, 8, 8))
    predictor = TentPredictor(plain(model, batch=1), Tent(steps=3, rate=0.1))
    adapted = predictor.predict_logits_from_preprocessed_data(data)
    copy = network()
    for _ in range(3):
        p = copy(data[None]).softmax(1)
        loss = -(p * p.log()).sum(1).mean()
        gradients = torch.autograd.grad(loss, [copy[1].weight, copy[1].bias])
        with torch.no_grad():
            for parameter, gradient in zip((copy[1].weight, copy[1].bias), gradients, strict=True):
                parameter -= 0.1 * gradient
    assert torch.allclose(adapted.float(), copy(data[None])[0], atol=5e-3)
    assert not torch.allclose(adapted.float(), network()(data[None])[0], atol=5e-3)


def test_tent_with_batch_norm_follows_a_naive_loop_with_the_statistics_of_the_volume():
    model, data = network("batch"), 3 * volume((1, 8, 8, 8)) + 2
    settings = Tent(steps=3, rate=0.1, statistics="source")
    adapted = TentPredictor(plain(model, batch=1), settings).predict_logits_from_preprocessed_data(data)
    copy = network("batch")
    for _ in range(3):
        x = copy[0](data[None])
        mean, var = x.mean((0, 2, 3, 4), keepdim=True), x.var((0, 2, 3, 4), False, keepdim=True)
        scale, shift = (p.reshape(1, -1, 1, 1, 1) for p in (copy[1].weight, copy[1].bias))
        p = copy[2:](scale * (x - mean) / (var + copy[1].eps).sqrt() + shift).softmax(1)
        gradients = torch.autograd.grad(-(p * p.log()).sum(1).mean(), [copy[1].weight, copy[1].bias])
        with torch.no_grad():
            for parameter, gradient in zip((copy[1].weight, copy[1].bias), gradients, strict=True):
                parameter -= 0.1 * gradient
    assert torch.allclose(adapted.float(), copy(data[None])[0], atol=5e-3)  # predicted with the trained statistics


def test_a_volume_is_adapted_to_the_same_whatever_came_before_and_with_the_same_seed_only():
    def logits(*cases, seed=0):
        predictor = TentPredictor(plain(network()), Tent(steps=2, rate=0.1), seed)
        for case in cases:
            predictor.case = case
            result = predictor.predict_logits_from_preprocessed_data(volume())
        return result

    assert torch.equal(logits("a"), logits("b", "a"))
    assert not torch.equal(logits("a"), logits("b"))
    assert not torch.equal(logits("a"), logits("a", seed=1))


def test_batch_norm_uses_own_statistics_while_adapting_and_the_requested_ones_to_predict():
    model, data = network("batch"), 3 * volume((1, 8, 8, 8)) + 2
    by_source = TentPredictor(plain(model), Tent(steps=0, statistics="source"))
    expected = plain(model).predict_logits_from_preprocessed_data(data)
    assert torch.equal(by_source.predict_logits_from_preprocessed_data(data), expected)
    by_patch = TentPredictor(plain(model), Tent(steps=0)).predict_logits_from_preprocessed_data(data)
    x = model[0](data[None])
    normalized = (x - x.mean((0, 2, 3, 4), keepdim=True)) / (x.var((0, 2, 3, 4), False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(by_patch.float(), model[2:](normalized)[0], atol=5e-3)
    with own_statistics(batch_norms(model)):
        model(data[None])
    assert model[1].running_mean.tolist() == [0] * 4  # neither lost nor updated


def test_what_cannot_adapt_is_refused_by_name():
    without = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2), nn.Conv3d(2, 3, 1))
    with pytest.raises(AdaptationError, match="no norm layer with a trained scale and shift"):
        TentPredictor(plain(without), Tent())
    with pytest.raises(AdaptationError, match="`statistics` 'source' needs batch norm"):
        TentPredictor(plain(network()), Tent(statistics="source"))
    with pytest.raises(AdaptationError, match=r"has 2 folds\. Choose one of the `folds`"):
        SFBPredictor(plain(network(), network()), plain(network()), 1.0, SFB())
    with pytest.raises(SettingsError, match=r"`steps` must be a whole number in .*; got -1"):
        Tent(steps=-1)
    model = network()
    predictor = TentPredictor(plain(model), Tent(steps=2, rate=0.1))
    predictor.case, before = "a", state(model)
    with pytest.raises(AdaptationError, match=r"a: the loss is nan after 0 steps\. Use a smaller `rate`"):
        predictor.predict_logits_from_preprocessed_data(torch.full((1, 8, 8, 8), float("nan")))
    assert same(state(model), before)


def test_a_frozen_extractor_is_never_adapted():
    planned = [nn.Conv3d(17, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 3, 1)]
    wrapped = build_dropgen_network(DropGen(), lambda channels: nn.Sequential(*planned), 1, 1, (16, 16, 16))
    wrapped.extractor.load_published(random_weights())
    wrapped.extractor.register_module("norm", nn.InstanceNorm3d(16, affine=True))  # of an extractor that has one
    assert list(affine(wrapped)) == ["network.1.weight", "network.1.bias"]
    assert {name.split(".")[0] for name in trainable(wrapped)} == {"network"}
    wrapped.extractor.register_module("norm", None)
    before = state(wrapped)
    predictor = SFBPredictor(
        plain(wrapped, patch=(16, 16, 16)), plain(network()), 1.0, SFB(rounds=1, steps=1, rate=0.1)
    )
    assert predictor.adapted()["frozen_extractors"] == ["extractor"]
    predictor.predict_logits_from_preprocessed_data(volume((1, 16, 16, 16)))
    assert same(state(wrapped), before)


@pytest.mark.parametrize("regions", [False, True])
def test_sfb_teaches_the_unstable_model_the_stable_ones_labels(regions):
    stable, unstable, data = network(seed=3), network(seed=1), volume((1, 16, 16, 16))
    with torch.no_grad():
        stable[-1].weight.mul_(8)  # confident
    before = state(unstable)
    settings = SFB(rounds=3, steps=20, rate=0.05)
    predictor = SFBPredictor(plain(unstable, regions=regions), plain(stable, regions=regions), 1.5, settings)
    logits = predictor.predict_logits_from_preprocessed_data(data)
    assert same(state(unstable), before)
    losses = predictor.notes["divergence_of_crops"]
    assert len(losses) == 3
    assert losses[0][1] < 0.7 * losses[0][0]
    assert len(predictor.notes["uncorrected_outputs"]) == 3
    again = SFBPredictor(plain(unstable, regions=regions), plain(stable, regions=regions), 1.5, settings)
    assert torch.equal(again.predict_logits_from_preprocessed_data(data), logits)
    if not regions:
        assert logits.float().softmax(0).numpy() == pytest.approx(logits.float().exp().numpy(), abs=1e-2)


def joint_logits(f, u, q, temperature, regions):
    """A round of SFB by its equations, from logits ``(K, *spatial)``; each region is a problem of two classes."""
    if regions:
        pairs = [[torch.stack([torch.zeros_like(x[k]), x[k]]) for x in (f, u, q)] for k in range(len(f))]
        both = [joint_logits(*pair, temperature, False) for pair in pairs]
        return torch.stack([outside_inside[1] - outside_inside[0] for outside_inside in both])
    f, u, q = ((x / t).softmax(0).flatten(1) for x, t in ((f, temperature), (u, 1), (q, 1)))
    matrix = torch.stack([torch.stack([(q_j * f_k).sum() / f_k.sum() for f_k in f]) for q_j in q])
    eta = (matrix.inverse() @ u).clamp(1e-4, 1)
    product = f * (eta / eta.sum(0)) / f.mean(1)[:, None]
    return (product / product.sum(0)).log().reshape(len(f), 8, 8, 8)


@pytest.mark.parametrize("regions", [False, True])
def test_sfb_follows_a_naive_loop_whose_rounds_fit_the_joint_predictions_before(regions, monkeypatch):
    monkeypatch.setattr("nnunet_dg.adaptation.boosting.RAREST", 1)  # voxels, since the volume is small
    stable, unstable, data = network(seed=3), network(seed=1), volume((1, 8, 8, 8))
    with torch.no_grad():
        stable[-1].weight.mul_(8)  # confident

    def predictor(model):
        return plain(model, regions=regions, batch=1)

    sfb = SFBPredictor(predictor(unstable), predictor(stable), 1.5, SFB(rounds=2, steps=4, rate=0.05))
    result = sfb.predict_logits_from_preprocessed_data(data)
    assert sfb.notes["uncorrected_outputs"] == [[]] * 2
    f = predictor(stable).predict_logits_from_preprocessed_data(data)
    labels, optimizer = f.float() / 1.5, torch.optim.AdamW(unstable.parameters(), lr=0.05)
    for _ in range(2):
        for _ in range(4):
            logits = unstable(data[None])[0]
            if regions:
                loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float().sigmoid())
            else:
                loss = -(labels.float().softmax(0) * logits.log_softmax(0)).sum(0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        labels = joint_logits(f.double(), unstable(data[None])[0].detach().double(), labels.double(), 1.5, regions)
    probabilities = [(x.float().sigmoid() if regions else x.float().softmax(0)) for x in (result, labels)]
    assert torch.allclose(*probabilities, atol=5e-3)


@pytest.mark.parametrize("regions", [False, True])
def test_without_steps_sfb_combines_plain_predictions(regions):
    stable, unstable, data = network(seed=3), network(seed=1), volume((1, 16, 16, 16))
    logits = [plain(n).predict_logits_from_preprocessed_data(data) for n in (stable, unstable)]
    predictor = SFBPredictor(plain(unstable, regions=regions), plain(stable), 1.5, SFB(steps=0))
    expected, lefts = (logits[0].float() / 1.5).half(), []
    for _ in range(3):
        expected, left = boosted(*logits, expected, 1.5, regions)
        lefts.append(left)
    assert torch.equal(predictor.predict_logits_from_preprocessed_data(data), expected)
    assert predictor.notes["uncorrected_outputs"] == lefts


def test_alpha_mixes_the_logits_of_ensembles():
    def stable():
        return plain(network(seed=1), network(seed=2))

    def unstable():
        return plain(network(seed=3))

    data = volume()
    logits = [predictor.predict_logits_from_preprocessed_data(data) for predictor in (stable(), unstable())]
    for alpha, expected in (
        (0, logits[0]),
        (1, logits[1]),
        (0.25, (0.75 * logits[0].float() + 0.25 * logits[1].float())),
    ):
        predictor = AlphaPredictor(unstable(), stable(), alpha)
        result = predictor.predict_logits_from_preprocessed_data(data)
        assert torch.allclose(result.float(), expected.float(), atol=2e-3)
        assert predictor.notes == {"foreground_fraction": pytest.approx((result.argmax(0) > 0).float().mean().item())}


def test_crops_are_uniform_over_the_volume_and_padding_is_left_out():
    data = torch.arange(10 * 3 * 6.0).reshape(1, 10, 3, 6)
    crops, generator = Crops((10, 3, 6), (4, 4, 4)), torch.Generator().manual_seed(0)
    starts = crops.draw(3000, generator)
    counts = np.bincount([start[0] for start in starts], minlength=7)
    assert (counts > 300).all()
    assert {start[1] for start in starts} == {0}
    batch = crops.cut(data, [(6, 0, 2), (0, 0, 0)])
    assert batch.shape == (2, 1, 4, 4, 4)
    assert torch.equal(batch[crops.inside][0, 0], data[0, 6:, :, 2:])
    assert torch.equal(batch[crops.inside][1, 0], data[0, :4, :, :4])
    slices = Crops((3, 10, 6), (4, 8))
    assert {start[0] for start in slices.draw(50, generator)} == {0, 1, 2}
    cut = slices.cut(data.reshape(1, 3, 10, 6), [(1, 2, 0)])
    assert cut.shape == (1, 1, 4, 8)
    assert torch.equal(cut[slices.inside][0, 0], data.reshape(3, 10, 6)[1, 2:6])


def test_tent_adapts_the_norms_of_several_branches():
    model = NearestBranchNetwork(nn.Sequential(*network())).eval()
    before, data = state(model), volume()
    results = []
    for steps in (0, 20):
        predictor = TentPredictor(plain(model), Tent(steps=steps, rate=0.3))
        results.append(entropy(predictor.predict_logits_from_preprocessed_data(data)[None]))
    assert predictor.adapted()["tensors"] == ["network.1.weight", "network.1.bias"]
    assert results[1] < 0.99 * results[0]
    assert same(state(model), before)
