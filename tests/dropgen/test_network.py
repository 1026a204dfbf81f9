"""DropGen's network: its input, dropout, checkpoints, settings, and voxels outside the subject."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from nnunet_dg.dropgen import ChannelDropout, DropGenNetwork, DropGenSettings, build_dropgen_network
from nnunet_dg.extractors import build_extractor, create_extractor
from nnunet_dg.outside import Outside

MIND = DropGenSettings(extractor="mind")


class Recorder(nn.Module):
    """A segmentation network that records its input."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.convolution = nn.Conv3d(channels, 2, 1)
        self.decoder = nn.Identity()

    def forward(self, z):
        self.received = z
        assert z.shape[1] == self.channels
        return z.mean(1, keepdim=True)


def build(settings, image_channels=1, rest=0, spatial_dims=3, outside=None):
    patch = (16,) * spatial_dims
    return build_dropgen_network(settings, Recorder, image_channels + rest, image_channels, patch, outside)


@pytest.mark.parametrize(
    ("settings", "image_channels", "rest", "expected"),
    [
        (DropGenSettings(), 1, 0, 17),
        (DropGenSettings(), 4, 0, 68),
        (DropGenSettings(combine="mean"), 4, 0, 20),
        (DropGenSettings(), 1, 3, 20),
        (MIND, 2, 0, 26),
        (DropGenSettings(inputs="features"), 1, 0, 16),
        (DropGenSettings(inputs="image"), 4, 2, 6),
    ],
)
def test_number_of_input_channels(settings, image_channels, rest, expected):
    assert build(settings, image_channels, rest).network.channels == expected


@pytest.mark.parametrize("spatial", [(10, 12), (8, 9, 10)])
def test_training_and_prediction_combine_the_same_values(spatial):
    """In another memory format, in which a training step is faster on a CPU."""
    net = build(MIND, image_channels=2, spatial_dims=len(spatial))
    x = torch.rand(2, 2, *spatial)
    trained, predicted = net.train().combine(x), net.eval().combine(x)
    assert torch.equal(trained, predicted)
    assert trained.is_contiguous() == (len(spatial) == 2)
    assert predicted.is_contiguous()


@pytest.mark.parametrize("batch", [1, 2])
def test_the_memory_format_of_training_changes_gradients_by_rounding_only(batch):
    torch.manual_seed(0)
    net = build(MIND, spatial_dims=3).train()
    z = net.combine(torch.rand(batch, 1, 12, 12, 12))
    network = torch.nn.Sequential(
        torch.nn.Conv3d(z.shape[1], 4, 3), torch.nn.InstanceNorm3d(4, affine=True), torch.nn.Conv3d(4, 2, 3)
    )
    gradients = [
        torch.autograd.grad(network(given).square().sum(), network.parameters()) for given in (z, z.contiguous())
    ]
    assert not z.is_contiguous()
    largest = max(gradient.abs().max().item() for gradient in gradients[1])
    for ours, usual in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("spatial", [(10, 12), (8, 9, 10)])
def test_the_network_sees_the_image_then_its_features_then_the_other_channels(spatial):
    net = build(MIND, image_channels=2, rest=3, spatial_dims=len(spatial)).eval()
    x = torch.rand(2, 5, *spatial)
    net(x)
    mind = build_extractor("mind", spatial_dims=len(spatial))
    expected = [x[:, :2], mind(x[:, 0:1]), mind(x[:, 1:2]), x[:, 2:]]
    torch.testing.assert_close(net.network.received, torch.cat(expected, 1), rtol=1e-4, atol=1e-4)


def test_features_are_averaged_over_image_channels():
    net = build(DropGenSettings(extractor="mind", combine="mean"), image_channels=2).eval()
    x = torch.rand(1, 2, 8, 8, 8)
    net(x)
    mind = build_extractor("mind")
    expected = (mind(x[:, :1]) + mind(x[:, 1:])) / 2
    torch.testing.assert_close(net.network.received[:, 2:], expected, rtol=1e-4, atol=1e-4)


def test_image_channels_are_scaled_to_0_1_if_set():
    net = build(DropGenSettings(extractor="mind", image_scaling="minmax"), image_channels=2).eval()
    x = torch.rand(2, 2, 8, 8, 8)
    x[:, 1] = 100 * x[:, 1] + 50
    net(x)
    image, axes = net.network.received[:, :2], (2, 3, 4)
    assert image.amin(axes).tolist() == [[0, 0], [0, 0]]
    assert image.amax(axes).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("scaling", ["minmax", "zscore"])
def test_the_extractors_input_has_the_scaling_of_the_settings(scaling, monkeypatch):
    net = build(DropGenSettings(extractor="mind", extractor_scaling=scaling)).eval()
    seen, compute = [], net.extractor.features
    monkeypatch.setattr(net.extractor, "features", lambda x: seen.append(x) or compute(x))
    x = 3 + 100 * torch.randn(2, 1, 8, 8, 8)
    net(x)
    lowest = x.amin((1, 2, 3, 4), keepdim=True)
    mean, std = x.mean((1, 2, 3, 4), keepdim=True), x.std((1, 2, 3, 4), keepdim=True)
    minmaxed = (x - lowest) / (x.amax((1, 2, 3, 4), keepdim=True) - lowest)
    expected = {"minmax": minmaxed, "zscore": (x - mean) / std}[scaling]
    torch.testing.assert_close(seen[0], expected, rtol=1e-2, atol=1e-2)


def test_the_previous_stage_is_never_dropped():
    torch.manual_seed(0)
    net = build(DropGenSettings(extractor="mind", p=0.9), rest=2).train()
    x = torch.rand(50, 3, 6, 6, 6) + 1
    net(x)
    assert torch.equal(net.network.received[:, -2:], x[:, 1:])
    assert (net.network.received[:, :-2].flatten(2).abs().sum(2) == 0).float().mean() > 0.8


def test_structured_masking_treats_all_image_channels_as_the_image():
    torch.manual_seed(0)
    net = build(DropGenSettings(extractor="mind", masking="structured", p=0.9), image_channels=2).train()
    net(torch.rand(60, 2, 6, 6, 6) + 1)
    kept = net.network.received.flatten(2).abs().sum(2) > 0
    image, features = kept[:, :2], kept[:, 2:]
    assert torch.equal(image.all(1), image.any(1))
    assert torch.equal(features.all(1), features.any(1))
    assert 0 < image.any(1).sum() < 60
    assert 0 < features.any(1).sum() < 60


@pytest.mark.parametrize("inputs", ["image", "features"])
def test_there_is_no_dropout_with_only_the_image_or_only_the_features(inputs):
    net = build(DropGenSettings(extractor="mind", inputs=inputs, p=0.9)).train()
    x = torch.rand(20, 1, 6, 6, 6)
    net(x)
    assert (net.network.received.flatten(2).abs().sum(2) > 0).all()


def test_eval_is_deterministic_and_training_is_not():
    net = build(MIND)
    x = torch.rand(4, 1, 8, 8, 8)
    assert torch.equal(net.eval()(x), net(x))
    assert not torch.equal(net.train()(x), net(x))


def test_half_precision_features_make_the_input_half_precision(anatomix_weights):
    net = build(DropGenSettings()).eval()
    net.extractor.load_published(anatomix_weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(torch.rand(1, 1, 20, 24, 32))
    assert net.network.received.dtype == torch.bfloat16
    assert torch.isfinite(net.network.received).all()


def test_works_with_four_image_channels_and_an_anisotropic_patch(anatomix_weights):
    net = build(DropGenSettings(), image_channels=4).train()
    net.extractor.load_published(anatomix_weights)
    x = torch.rand(1, 4, 12, 48, 40)
    x[:, 2] = 5.0  # one channel is constant
    assert torch.isfinite(net(x)).all()
    assert net.network.received.shape == (1, 68, 12, 48, 40)


def test_nnunet_can_toggle_deep_supervision_of_the_planned_network():
    net = build(MIND)
    net.decoder.deep_supervision = True
    assert net.network.decoder.deep_supervision is True


def test_the_state_dict_is_complete(anatomix_weights):
    trained = build(DropGenSettings()).eval()
    trained.extractor.load_published(anatomix_weights)
    fresh = build(DropGenSettings()).eval()
    with pytest.raises(RuntimeError, match="no weights"):
        fresh(torch.rand(1, 1, 32, 32, 32))
    fresh.load_state_dict(trained.state_dict())
    x = torch.rand(1, 1, 32, 32, 32)
    assert torch.equal(fresh(x), trained(x))


def test_a_checkpoint_with_another_extractor_is_refused():
    mind, anatomix = build(MIND), build(DropGenSettings())
    with pytest.raises(RuntimeError, match="trained with another extractor\\. The plans say extractor 'anatomix'"):
        anatomix.load_state_dict(mind.state_dict())
    with pytest.raises(RuntimeError, match="trained with another extractor\\. The plans say extractor 'mind'"):
        mind.load_state_dict(anatomix.state_dict())
    with pytest.raises(RuntimeError, match=r"trained with another extractor.*layer 'final'"):
        build(DropGenSettings(layer="final")).load_state_dict(anatomix.state_dict())
    stacked = {k: torch.stack([v, v]) if k.endswith(".weight") else v for k, v in anatomix.state_dict().items()}
    with pytest.raises(RuntimeError, match="trained with another extractor"):  # the same names, other shapes
        anatomix.load_state_dict(stacked)


def test_a_plain_nnunet_checkpoint_is_refused():
    with pytest.raises(RuntimeError, match="not a DropGen checkpoint"):
        build(MIND).load_state_dict(Recorder(13).state_dict())


@pytest.mark.parametrize("settings", [MIND, DropGenSettings()], ids=["mind", "anatomix"])
def test_compiles_without_graph_breaks_and_gives_the_same_result(settings, anatomix_weights):
    extractor = create_extractor(settings.extractor)
    if settings.extractor == "anatomix":
        extractor.load_published(anatomix_weights)
    segment = nn.Conv3d(1 + extractor.out_channels, 2, 1)
    net = DropGenNetwork(segment, extractor, ChannelDropout(0.5), 1, settings, MASKED)
    x = torch.rand(2, 1, 16, 20, 24)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled.eval()(x), net.eval()(x), rtol=1e-4, atol=1e-4)
    compiled.train()(x).sum().backward()  # with dropout, training is also a single graph
    assert torch.isfinite(segment.weight.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1}, r"p must be a probability in \[0, 0\.99\]"),
        ({"p": [0.75, 0.25]}, r"p must be .*a list of the lowest and the highest; got \[0\.75, 0\.25\]"),
        ({"p": [0.0, 1.0]}, r"p must be .*, or a range of them: .*; got \[0\.0, 1\.0\]"),
        ({"p": [0.1, 0.2, 0.3]}, r"p must be .*; got \[0\.1, 0\.2, 0\.3\]"),
        ({"p": [True, 0.5]}, r"p must be .*; got \[True, 0\.5\]"),
        ({"p_end": 1.0}, r"p_end must be a number in \[0, 0\.99\], or null; got 1\.0"),
        ({"p_end": [0.0, 0.5]}, r"p_end must be a number in \[0, 0\.99\], or null; got \[0\.0, 0\.5\]"),
        (
            {"extractor": "anatomics"},
            "must be one of anatomix, anatomix-dev, mind, nnunet, synthetic; got 'anatomics'",
        ),
        ({"layer": 59}, "layer must be one of penultimate, final; got 59"),
        ({"combine": "sum"}, "combine must be one of concat, mean; got 'sum'"),
        ({"inputs": "both"}, r"inputs must be one of image\+features, features, image; got 'both'"),
        ({"masking": "block"}, "masking must be one of channel, structured; got 'block'"),
        ({"extractor_scaling": "none"}, "extractor_scaling must be one of minmax, zscore; got 'none'"),
        ({"normalize": "batch"}, "normalize must be one of instance, voxelwise, or null; got 'batch'"),
        ({"weights": "a\0b"}, "weights must be the path of a file"),
        ({"p": 0.9999999999999999}, r"p must be a probability in \[0, 0\.99\].*; got 0\.9999999999999999"),
        ({"image_scaling": "zscore"}, "image_scaling must be one of none, minmax; got 'zscore'"),
        ({"weights": 3}, "weights must be the path of a file, .*; got 3"),
        ({"weights": ""}, "weights must be the path of a file, .*; got ''"),
        ({"extractor": "mind", "weights": "a.pth"}, "extractor 'mind' has neither weights nor layers"),
        ({"extractor": "mind", "layer": "final"}, "extractor 'mind' has neither weights nor layers"),
        ({"extractor": "nnunet", "layer": "final"}, "extractor 'nnunet' has no layers"),
    ],
)
def test_errors_name_the_setting_and_the_accepted_values(options, message):
    with pytest.raises(ValueError, match=message):
        DropGenSettings(**options)


@pytest.mark.parametrize("settings", [DropGenSettings(), MIND])
def test_has_no_buffers(settings):
    """DDP broadcasts buffers in forward passes, so it would hang if processes validate different numbers of cases."""
    assert not list(build(settings).buffers())


def test_a_patch_that_is_too_small_is_refused_when_the_network_is_built():
    with pytest.raises(ValueError, match=r"patch too small: .*got \(1, 32, 32\)"):
        build_dropgen_network(MIND, Recorder, 1, 1, (1, 32, 32))
    build_dropgen_network(DropGenSettings(inputs="image"), Recorder, 1, 1, (1, 32, 32))


def test_two_dimensional_anatomix_is_refused():
    with pytest.raises(NotImplementedError, match="'anatomix' is 3-D only"):
        build(DropGenSettings(), spatial_dims=2)


MASKED = Outside((True,), (True,))


def masked_image(*spatial):
    """Noise around zero, as nnU-Net normalizes it, with zeros outside a box."""
    image = torch.zeros(2, 1, *spatial)
    box = (..., *(slice(3, n - 2) for n in spatial))
    image[box] = torch.randn_like(image[box])
    return image


def seen_by(extractor, monkeypatch):
    """The inputs of the extractor, in the order of its calls."""
    seen, compute = [], extractor.features
    monkeypatch.setattr(extractor, "features", lambda x: seen.append(x) or compute(x))
    return seen


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("settings", [MIND, DropGenSettings()], ids=["mind", "anatomix"])
def test_outside_a_mask_the_extractor_sees_black_and_the_network_zeros(settings, train, anatomix_weights, monkeypatch):
    torch.manual_seed(0)
    net = build(settings, outside=MASKED).train(train)
    net.dropout = nn.Identity()
    if settings.extractor == "anatomix":
        net.extractor.load_published(anatomix_weights)
    seen = seen_by(net.extractor, monkeypatch)
    image = masked_image(32, 32, 32)
    net(image)
    assert (seen[0][image == 0] == 0).all()  # black, since the extractor's input is in [0, 1]
    assert torch.equal(net.network.received[:, :1], image)
    assert seen[0][image != 0].median() > 0.3


@pytest.mark.parametrize("settings", [MIND, DropGenSettings(extractor="mind", inputs="image")])
def test_a_min_maxed_image_is_black_outside_a_mask(settings):
    settings = replace(settings, image_scaling="minmax")
    net = build(settings, outside=MASKED, spatial_dims=2).eval()
    image = masked_image(12, 14)
    net(image)
    assert (net.network.received[:, :1][image == 0] == 0).all()


def test_a_patch_outside_the_mask_gives_zeros():
    net = build(MIND, outside=MASKED).eval()
    net(torch.zeros(1, 1, 8, 8, 8))
    assert torch.equal(net.network.received, torch.zeros(1, 13, 8, 8, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("settings", [MIND, DropGenSettings(), DropGenSettings(inputs="image", image_scaling="minmax")])
def test_a_network_cast_to_another_dtype_computes_in_this_dtype(settings, dtype, anatomix_weights):
    net = build(settings, outside=MASKED).eval()
    if settings.extractor == "anatomix" and net.extractor is not None:
        net.extractor.load_published(anatomix_weights)
    x = torch.randn(1, 1, 32, 32, 32).to(dtype)
    net(x.float())
    expected = net.network.received
    net.to(dtype)(x)
    assert net.network.received.dtype == dtype
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-3}[dtype]  # for the rounding errors
    torch.testing.assert_close(net.network.received.float(), expected, rtol=tolerance, atol=tolerance)


def test_features_have_the_extractors_default_normalization_unless_set():
    def norm(**settings):
        return build(DropGenSettings(**settings)).extractor.normalize

    assert norm(extractor="anatomix") == "instance"
    assert norm(extractor="anatomix-dev") == "voxelwise"
    assert norm(extractor="anatomix-dev", normalize="instance") == "instance"
    assert norm(extractor="mind", normalize="voxelwise") == "voxelwise"
    assert DropGenSettings(extractor="anatomix-dev").completed().normalize == "voxelwise"
    assert DropGenSettings().completed().normalize == "instance"


def test_settings_recorded_before_normalize_existed_keep_their_meaning():
    recorded = asdict(DropGenSettings(extractor="anatomix-dev"))
    for name in ("normalize", "p_end", "fusion", "squeeze"):  # the others are newer
        del recorded[name]
    assert DropGenSettings.upgraded(recorded)["normalize"] == "instance"
    assert DropGenSettings.upgraded({"extractor": "anatomix-dev"}) == {"extractor": "anatomix-dev"}
    written = asdict(DropGenSettings(extractor="anatomix-dev").completed())
    assert DropGenSettings.upgraded(written) == written
