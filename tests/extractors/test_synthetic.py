"""The small network: invariances, gradients, borders, and its place among the extractors."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers import shared
from torch.nn import functional as F

from nnunet_dg.dropgen import DropGen
from nnunet_dg.dropgen.network import build_dropgen_network, load_extractor
from nnunet_dg.errors import SettingsError, WeightsError
from nnunet_dg.extractors import build_extractor, create_extractor, load_weights
from nnunet_dg.extractors import synthetic as module
from nnunet_dg.extractors.synthetic import Synthetic, included
from nnunet_dg.extractors.synthetic_network import (
    STEM,
    WIDTHS,
    Convolution,
    Mixture,
    SyntheticNetwork,
    bordered,
    doubled,
    halved,
    joined_border,
)
from nnunet_dg.pretraining.measures import held_out_measures
from nnunet_dg.pretraining.pretrain import STEPS
from nnunet_dg.pretraining.step import RECIPES
from nnunet_dg.robustness.similarity import linear_cka
from nnunet_dg.synthesis import Draws, draw_pair
from nnunet_dg.tensors import instance_norm

INCLUDED = (2, 3)
SHAPES = {2: (24, 17), 3: (16, 17, 20)}


@pytest.fixture(params=[2, 3])
def dims(request):
    return request.param


@pytest.fixture
def weights(dims, tmp_path):
    """A file with random weights, as `nnunet-dg pretrain` writes it."""
    torch.manual_seed(0)
    path = tmp_path / f"weights_{dims}.pt"
    torch.save({name: value.half() for name, value in SyntheticNetwork(dims).state_dict().items()}, path)
    return path


def test_gain_offset_and_inversion_cancel(dims, weights):
    extractor = build_extractor("synthetic", weights=weights, spatial_dims=dims)
    x = torch.rand(2, 1, *SHAPES[dims])
    features = extractor(x)
    assert features.shape == (2, 16, *SHAPES[dims])
    for changed in (3 * x + 1, 0.01 * x, 1 - x, -200 * x + 7):
        torch.testing.assert_close(extractor(changed), features, atol=2e-3, rtol=0)
        assert (extractor(changed) - features).abs().mean() < 1e-4
    assert (extractor(x**2) - features).abs().mean() > 1e-2  # other changes of contrast have to be learned


def test_the_network_is_invariant_without_min_max_as_well(dims):
    network = SyntheticNetwork(dims).double()
    x = torch.rand(1, 1, *[16] * dims, dtype=torch.float64)
    for changed in (-x, 50 * x + 3):
        torch.testing.assert_close(network(changed), network(x), atol=1e-5, rtol=1e-4)


def test_a_large_offset_does_not_spoil_the_norm_in_single_precision(dims):
    network = SyntheticNetwork(dims).eval()
    x = torch.rand(1, 1, *[16] * dims)
    features, same = network(x), network(x + 1000)
    assert F.cosine_similarity(features.flatten(), same.flatten(), dim=0) > 0.999


def test_the_rank_is_not_limited_by_the_narrowest_level(dims, weights):
    features = build_extractor("synthetic", weights=weights, spatial_dims=dims)(torch.rand(1, 1, *[24] * dims))
    assert torch.linalg.matrix_rank(features[0].flatten(1), rtol=1e-3) >= 12


def test_halving_and_doubling_agree_with_pytorchs(dims):
    x = torch.randn(2, 3, *(4, 6, 8)[:dims])
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    mode = "bilinear" if dims == 2 else "trilinear"
    torch.testing.assert_close(halved(x), pool(x, 2))
    torch.testing.assert_close(doubled(x), F.interpolate(x, scale_factor=2, mode=mode, align_corners=False))
    padding = F.pad(x, [1] * (2 * dims), mode="replicate")
    torch.testing.assert_close(bordered(x), padding)
    torch.testing.assert_close(joined_border(x), padding)


@pytest.mark.parametrize("magnitude", [False, True])
def test_a_convolution_is_pytorchs_with_instance_norm(dims, magnitude):
    block = Convolution(dims, 3, 4, magnitude).double()
    x = 1e-2 * torch.randn(2, 3, *(6, 7, 8)[:dims], dtype=torch.float64) + 5  # the variance is near what is added to it
    kept = x.clone()
    convolution = F.conv2d if dims == 2 else F.conv3d
    y = convolution(F.pad(x, [1] * (2 * dims), mode="replicate"), block.convolution.weight)
    if magnitude:
        expected = F.instance_norm(y, eps=1e-8).abs()
    else:
        torch.nn.init.normal_(block.gain)
        torch.nn.init.normal_(block.shift)
        expected = F.leaky_relu(F.instance_norm(y, weight=block.gain.flatten(), bias=block.shift.flatten()), 0.1)
    torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=1e-6)
    with torch.no_grad():  # computed in place
        torch.testing.assert_close(block(x), expected, atol=1e-6, rtol=1e-6)
        assert torch.equal(x, kept)
        assert torch.isfinite(block.float()(torch.full((1, 3, *[8] * dims), 1e4))).all()


def test_a_mixture_is_the_convolution_of_the_concatenated_levels(dims):
    """So that interpolation and convolution may be exchanged, in values and in gradients."""
    mixture = Mixture(dims, 3, 5).double()
    fine = torch.randn(2, 3, *(4, 6, 8)[:dims], dtype=torch.float64, requires_grad=True)
    coarse = torch.randn(2, 5, *(2, 3, 4)[:dims], dtype=torch.float64, requires_grad=True)
    expected = mixed(mixture, fine, coarse)
    inputs = [fine, coarse, *mixture.parameters()]
    towards = torch.randn_like(expected)
    torch.testing.assert_close(mixture(fine, coarse), expected)
    gradients = torch.autograd.grad(mixture(fine, coarse), inputs, towards)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, towards))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [1, 2])
def test_the_network_is_two_levels_of_pytorchs_functions(dims, number, dtype):
    """With and without gradient, of one sample and of two, which take different paths."""
    network = SyntheticNetwork(dims).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # gains and shifts are not 1 and 0
    x = 3 + torch.rand(number, 1, *(24, 16, 32)[:dims], dtype=dtype)
    kept, expected = x.clone(), naive(network, x)
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-8}[dtype]
    torch.testing.assert_close(network(x), expected, atol=tolerance, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, atol=tolerance, rtol=0)
    assert torch.equal(x, kept)


def naive(network, x):
    """Features of images ``(B, 1, *spatial)``, computed with `torch.nn.functional`."""
    dims = x.ndim - 2
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d

    def block(module, y):
        if isinstance(module, torch.nn.Sequential):
            return block(module[1], block(module[0], y))
        convolution = F.conv2d if dims == 2 else F.conv3d
        y = convolution(F.pad(y, [1] * (2 * dims), mode="replicate"), module.convolution.weight)
        if module.gain is None:
            return F.instance_norm(y, eps=1e-8).abs()
        return F.leaky_relu(F.instance_norm(y, weight=module.gain.flatten(), bias=module.shift.flatten()), 0.1)

    fine = block(network.fine, block(network.stem, x - x.mean(tuple(range(1, x.ndim)), keepdim=True)))
    return mixed(network.mixture, fine, block(network.coarse, pool(fine, 2)))


def mixed(mixture, fine, coarse):
    """The convolution of two levels that are concatenated."""
    mode, convolution = ("bilinear", F.conv2d) if fine.ndim == 4 else ("trilinear", F.conv3d)
    levels = torch.cat([fine, F.interpolate(coarse, scale_factor=2, mode=mode, align_corners=False)], 1)
    return convolution(levels, torch.cat([mixture.fine.weight, mixture.coarse.weight], 1), mixture.fine.bias)


def test_a_compiled_network_is_one_graph_and_agrees(dims):
    network = SyntheticNetwork(dims).eval()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    x = torch.rand(1, 1, *[16] * dims)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), atol=1e-4, rtol=1e-3)


def test_a_shift_by_the_networks_period_shifts_the_features(dims, weights):
    """Away from the border, and up to the statistics of the patch, which differ a little."""
    extractor = build_extractor("synthetic", weights=weights, spatial_dims=dims)
    size = 160 if dims == 2 else 64
    x = F.avg_pool2d(torch.rand(1, 1, size, size), 3, 1, 1) if dims == 2 else torch.rand(1, 1, size, size, size)
    whole, part = extractor(x), extractor(x[:, :, 2:])
    inner = (slice(None), slice(None), *[slice(10, -10)] * dims)
    a, b = whole[:, :, 2:][inner].flatten(2)[0], part[inner].flatten(2)[0]
    assert F.cosine_similarity(a, b, dim=0).quantile(0.01) > 0.98


def test_features_describe_the_surroundings_up_to_eight_voxels(dims):
    """A change at an even voxel reaches features from 7 voxels before to 8 behind it, and others by the norms only."""
    torch.manual_seed(0)
    network, size = SyntheticNetwork(dims).double().eval(), 64
    x = torch.rand(1, 1, *[size] * dims, dtype=torch.float64)
    changed = x.clone()
    changed[(0, 0, *[32] * dims)] += 1
    with torch.no_grad():
        effect = (network(changed) - network(x))[0].abs().amax(0)
    near = torch.zeros([size] * dims, dtype=torch.bool)
    near[tuple([slice(25, 41)] * dims)] = True
    by_norms = effect[~near].max()
    assert by_norms < {2: 0.02, 3: 0.001}[dims] * effect.max()
    for farthest in (25, 40):
        assert effect[(farthest, *[slice(25, 41)] * (dims - 1))].max() > 2 * by_norms


def test_gradients_are_finite_in_bfloat16_and_on_a_constant_image(dims):
    network = SyntheticNetwork(dims)
    for x in (torch.rand(1, 1, *[16] * dims), torch.full((2, 1, *[16] * dims), 3.0)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(x)
        output.float().square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_it_is_frozen_and_one_by_one(dims, weights):
    extractor = build_extractor("synthetic", weights=weights, spatial_dims=dims)
    x = torch.rand(2, 1, *SHAPES[dims], requires_grad=True)
    features = extractor.train()(x)
    assert not features.requires_grad
    assert not extractor.training
    torch.testing.assert_close(extractor(x[1:]), features[1:], atol=1e-3, rtol=1e-3)
    assert extractor(torch.full((1, 1, *SHAPES[dims]), 2.0)).abs().max() == 0


def test_other_files_are_named(dims, weights, tmp_path):
    other = 5 - dims
    with pytest.raises(WeightsError, match=rf"it is the {dims}-D network, but the {other}-D one .*--dims {other}"):
        build_extractor("synthetic", weights=weights, spatial_dims=other)
    content = torch.load(weights, weights_only=True)
    torch.save({name: value for name, value in content.items() if name != "mixture.fine.bias"}, tmp_path / "part.pt")
    with pytest.raises(
        WeightsError, match=r"another network; 1 tensors differ, for example mixture\.fine\.bias.* --dims"
    ):
        build_extractor("synthetic", weights=tmp_path / "part.pt", spatial_dims=dims)
    torch.save(content | {"mixture.fine.bias": torch.full((16,), float("nan"))}, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match=r"mixture\.fine\.bias has values that are not finite"):
        build_extractor("synthetic", weights=tmp_path / "nan.pt", spatial_dims=dims)
    with pytest.raises(WeightsError, match="nnunet-dg pretrain synthetic has written"):
        build_extractor("synthetic", weights=tmp_path / "none.pt", spatial_dims=dims)


def test_without_a_file_the_included_one_is_used_or_its_making_is_explained(dims, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    extractor = create_extractor("synthetic", spatial_dims=dims)
    message = rf"includes no {dims}-D weights.*nnunet-dg pretrain synthetic -o FILE --dims {dims}, then set weights"
    with pytest.raises(WeightsError, match=message):
        load_weights(extractor, "synthetic")
    with pytest.raises(RuntimeError, match="no weights yet"):
        extractor(torch.rand(1, 1, *SHAPES[dims]))
    weights.rename(tmp_path / f"synthetic_{dims}d.pt")
    assert load_weights(extractor, "synthetic") == included(dims)
    assert torch.isfinite(extractor(torch.rand(1, 1, *SHAPES[dims]))).all()


def test_settings_that_it_does_not_have_are_refused():
    with pytest.raises(SettingsError, match="'synthetic' has no layers"):
        build_extractor("synthetic", layer="final")
    with pytest.raises(SettingsError, match="extractor 'synthetic' has no layers: leave layer unset"):
        DropGen(extractor="synthetic", layer="final")
    with pytest.raises(SettingsError, match="spatial_dims must be 2 or 3; got 4"):
        Synthetic(4)


def test_in_dropgen_a_new_training_reads_the_file_and_a_checkpoint_contains_it(dims, weights):
    settings, lines = DropGen(extractor="synthetic", weights=str(weights)), []
    planned = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
    networks = [build_dropgen_network(settings, lambda n: planned(n, 2, 1), 2, 2, [16] * dims) for _ in range(2)]
    load_extractor(networks[0], lines.append)
    assert lines == [f"Extractor synthetic: weights from {weights} (as set)"]
    networks[1].load_state_dict(networks[0].state_dict())
    load_extractor(networks[1], lines.append)
    assert "weights from the checkpoint" in lines[1]
    x = torch.rand(1, 2, *[16] * dims)
    assert networks[0].combine(x).shape == (1, 2 + 32, *[16] * dims)
    torch.testing.assert_close(networks[0].combine(x), networks[1].combine(x))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_it_is_small(spatial_dims):
    assert sum(p.numel() for p in SyntheticNetwork(spatial_dims).parameters()) == {2: 10_648, 3: 23_320}[spatial_dims]


@pytest.mark.parametrize("spatial_dims", INCLUDED)
def test_the_included_file_is_that_of_its_description_and_of_todays_network_and_recipe(spatial_dims):
    path = included(spatial_dims)
    description = json.loads(path.with_suffix(".json").read_text())
    assert description["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    recipe = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(RECIPES[spatial_dims]).items()}
    assert (description["dims"], description["recipe"]) == (spatial_dims, recipe)
    assert description["network"] == {"stem": STEM, "levels": list(WIDTHS[spatial_dims]), "features": 16}
    assert description["measures"][-1]["step"] == description["steps"] == STEPS


@pytest.mark.parametrize("spatial_dims", INCLUDED)
def test_the_included_file_has_the_measures_of_its_description(spatial_dims):
    """On today's generated pairs: if the generator or a measure changes, the file must be trained again."""
    path = included(spatial_dims)
    description = json.loads(path.with_suffix(".json").read_text())
    network = build_extractor("synthetic", spatial_dims=spatial_dims).network
    found = held_out_measures(network, RECIPES[spatial_dims], description["seed"])
    written = {name: description["measures"][-1][name] for name in found}
    assert found == pytest.approx(written, rel=0.02, abs=0.005)


@pytest.mark.parametrize("spatial_dims", INCLUDED)
def test_the_included_file_does_not_see_the_place(spatial_dims):
    """Features of a scene agree with those of noise at the same place of the crop as little as at another place."""
    network = build_extractor("synthetic", spatial_dims=spatial_dims).network
    size = [max(RECIPES[spatial_dims].crops)] * spatial_dims
    here, elsewhere = [], []
    for key in range(6):
        views = [
            draw_pair(size, 8, Draws(7, key)).views[:1],
            torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(key)),
        ]
        with torch.no_grad():
            scene, noise = (instance_norm(network(view))[0] for view in views)
        moved = noise.roll([n // 4 for n in size], list(range(1, spatial_dims + 1)))  # half is symmetric
        for found, other in ((here, noise), (elsewhere, moved)):
            found.append(linear_cka(scene.flatten(1).T.numpy(), other.flatten(1).T.numpy()))
    assert np.mean(here) < 0.05  # networks with four levels had up to .20
    assert np.mean(here) < np.mean(elsewhere) + 0.02


@pytest.mark.matrix
def test_the_included_file_is_stable_between_contrasts_and_ignores_the_place():
    """On four contrasts of one subject: what MIND has, .47 and .20, is exceeded."""
    import SimpleITK as sitk

    from nnunet_dg.robustness.position import contrast_measures, image_measures

    extractor = build_extractor("synthetic")
    names, center = ("T1", "T2", "FLAIR", "T1POST"), (slice(8, 104), slice(24, 120), slice(8, 104))
    folder = shared("data", "contrasts_open_ms")
    volumes = {n: sitk.ReadImage(folder / f"patient19_{n}.nii.gz", sitk.sitkFloat32) for n in names}
    foreground = sitk.GetArrayFromImage(sitk.OtsuThreshold(volumes["T1"], 0, 1))[center] > 0
    images = {n: sitk.GetArrayFromImage(v)[center] for n, v in volumes.items()}

    def extract(image):
        return extractor(torch.from_numpy(image.copy())[None, None])[0].numpy()

    alone = image_measures(extract, images, foreground).mean(numeric_only=True)
    assert alone["cka_unrelated"] <= 0.02
    assert alone["effective_rank"] >= 8
    together = contrast_measures(extract, images, foreground, (8, 8, 8)).mean(numeric_only=True)
    assert together["cka_shifted"] >= 0.60
    assert together["recall_shifted"] >= 0.21
