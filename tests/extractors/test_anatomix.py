import importlib.util
import json

import numpy as np
import pytest
import torch
from helpers import shared
from plain_anatomix import PlainAnatomix, random_weights
from torch import nn
from torch.nn import functional as F

from nnunet_dg.extractors import build_extractor
from nnunet_dg.extractors.anatomix import LAYERS, VARIANTS, Anatomix, NearestMerge, fold, published_layout
from nnunet_dg.tensors import instance_norm, minmax, unit_norm

SMALLEST = {"anatomix": 32, "anatomix-dev": 64}


def loaded(variant="anatomix", layer="penultimate", weights=None):
    extractor = Anatomix(variant, layer)
    extractor.load_published(weights or random_weights(variant))
    return extractor


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", ["anatomix/a", "anatomix/b", "anatomix-dev/a"])
def test_agrees_with_the_published_network_on_golden_vectors(case, layer):
    golden = np.load(shared("golden", "anatomix_features.npz"))
    spec = importlib.util.spec_from_file_location("formula", shared("golden", "formula_weights.py"))
    formula = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formula)
    given = json.loads(shared("golden", "anatomix_inputs.json").read_text())[case]
    variant = case.split("/")[0]
    weights = {key: torch.from_numpy(np.asarray(value)) for key, value in formula.state_dict(variant).items()}
    x = torch.from_numpy(formula.volume(given["seed"], tuple(given["shape"])))

    with torch.no_grad():
        raw = loaded(variant, layer, weights).features(x)

    b, i, j, k = golden[f"{case}/voxels"].astype(int)
    for name, features in (("raw", raw), ("instance_norm", instance_norm(raw))):
        expected = golden[f"{case}/{layer}/{name}"]
        assert np.abs(features[b, :, i, j, k].numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_the_plain_unfolded_network(variant, layer):
    weights = random_weights(variant, seed=1)
    x = torch.rand(2 if variant == "anatomix" else 1, 1, *[SMALLEST[variant]] * 3)

    with torch.no_grad():
        raw = loaded(variant, layer, weights).features(x)

    plain = PlainAnatomix(weights, VARIANTS[variant].poolings, dev=variant == "anatomix-dev")(x)[layer]
    torch.testing.assert_close(raw, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_layout_matches_the_published_file(variant):
    layout = json.loads(shared("golden", "anatomix_layout.json").read_text())[variant]
    assert published_layout(VARIANTS[variant]) == {key: tuple(shape) for key, shape in layout.items()}


def test_published_network_has_the_published_number_of_parameters():
    shapes = published_layout(VARIANTS["anatomix"])
    learned = [np.prod(shape) for key, shape in shapes.items() if key.endswith(("weight", "bias"))]
    assert sum(learned) == pytest.approx(5.9e6, rel=0.01)


def test_fold_by_hand():
    weight, bias = torch.full((1, 1, 3, 3, 3), 2.0), torch.tensor([1.0])
    norm = {"weight": torch.tensor([3.0]), "bias": torch.tensor([0.5])}
    norm |= {"running_mean": torch.tensor([4.0]), "running_var": torch.tensor([9.0])}
    folded = fold(weight, bias, norm, eps=0.0)
    # 3 * (2 x + 1 - 4) / 3 + 0.5 = 2 x - 2.5
    assert folded["weight"].unique().tolist() == pytest.approx([2.0])
    assert folded["bias"].tolist() == pytest.approx([-2.5])


def test_nearest_merge_is_the_convolution_of_the_upsampled_feature():
    merge = NearestMerge(skip=2, below=3, width=4, activation=False)
    weight, bias = torch.randn(4, 5, 3, 3, 3), torch.randn(4)
    merge.load_kernel(weight, bias)
    skip, x = torch.randn(2, 2, 8, 6, 4), torch.randn(2, 3, 4, 3, 2)
    both = torch.cat([skip, F.interpolate(x, scale_factor=2, mode="nearest")], dim=1)
    expected = F.conv3d(F.pad(both, (1,) * 6, mode="reflect"), weight, bias)
    with torch.no_grad():
        torch.testing.assert_close(merge(skip, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(20, 40, 32), (12, 48, 40), (5, 17, 33), (2, 2, 2)])
def test_any_patch_size_is_padded_by_replication_and_cropped_back(size, anatomix_weights):
    x = torch.rand(1, 1, *size)
    extractor = loaded(weights=anatomix_weights)
    target = [max(32, -(-n // 16) * 16) for n in size]
    below = [(t - n) // 2 for t, n in zip(target, size, strict=True)]
    index = [torch.arange(t).sub(b).clamp(0, n - 1) for t, b, n in zip(target, below, size, strict=True)]
    padded = minmax(x)[:, :, index[0]][:, :, :, index[1]][:, :, :, :, index[2]]
    raw = PlainAnatomix(anatomix_weights)(padded)["penultimate"]
    b = below
    cropped = raw[:, :, b[0] : b[0] + size[0], b[1] : b[1] + size[1], b[2] : b[2] + size[2]]
    torch.testing.assert_close(extractor(x), F.instance_norm(cropped), rtol=1e-3, atol=1e-3)


def test_the_larger_variant_pads_to_its_own_five_poolings():
    extractor = Anatomix("anatomix-dev")
    extractor.load_published(random_weights("anatomix-dev"))
    assert extractor(torch.rand(1, 1, 12, 70, 40)).shape == (1, 32, 12, 70, 40)


def test_layers_after_the_penultimate_one_are_not_built():
    kernels = {
        layer: [p.shape for p in Anatomix(layer=layer).parameters() if p.ndim == 5]
        for layer in ("penultimate", "final")
    }
    assert kernels["penultimate"] == kernels["final"][:-2]


def test_a_patch_of_20_slices_has_normalized_features_of_its_size(anatomix_weights):
    features = loaded(weights=anatomix_weights)(torch.rand(1, 1, 20, 320, 256))
    assert features.shape == (1, 16, 20, 320, 256)
    torch.testing.assert_close(features.mean((2, 3, 4)), torch.zeros(1, 16), atol=1e-3, rtol=0)
    torch.testing.assert_close(features.var((2, 3, 4)), torch.ones(1, 16), atol=1e-2, rtol=0)


def test_features_do_not_depend_on_the_range_of_the_image_or_on_other_samples(anatomix_weights):
    extractor = loaded(weights=anatomix_weights)
    x = torch.rand(2, 1, 32, 32, 32)
    both = extractor(x)
    torch.testing.assert_close(extractor(1000 * x - 300), both, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(torch.cat([extractor(x[:1]), extractor(x[1:])]), both, rtol=1e-3, atol=1e-3)


def test_constant_patch_gives_zeros(anatomix_weights):
    for value in (0.0, 7.0, -1e6):
        features = loaded(weights=anatomix_weights)(torch.full((1, 1, 20, 24, 32), value))
        assert torch.equal(features, torch.zeros(1, 16, 20, 24, 32))


@pytest.mark.parametrize(("dtype", "agreement"), [(torch.bfloat16, 0.95), (torch.float16, 0.999)])
def test_autocast_stays_finite_and_close(dtype, agreement, anatomix_weights):
    extractor = loaded(weights=anatomix_weights)
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.autocast("cpu", dtype=dtype):
        half = extractor(x)
        assert extractor(torch.full((1, 1, 32, 32, 32), 3.0)).abs().max() == 0
    assert torch.isfinite(half).all()
    assert F.cosine_similarity(half.float().flatten(2), extractor(x).flatten(2), dim=2).min() > agreement


def test_stays_frozen_when_its_parent_is_trained(anatomix_weights):
    extractor = loaded(weights=anatomix_weights)
    before = {key: value.clone() for key, value in extractor.state_dict().items()}
    parent = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), extractor, nn.Conv3d(16, 1, 1)).train()
    optimizer = torch.optim.AdamW(parent.parameters(), lr=1.0, weight_decay=1.0)
    for _ in range(2):
        parent(torch.rand(1, 1, 32, 32, 32)).sum().backward()
        optimizer.step()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert all(torch.equal(before[key], value) for key, value in extractor.state_dict().items())


def test_computing_without_weights_is_an_error_until_a_state_dict_is_loaded(anatomix_weights):
    empty = Anatomix()
    with pytest.raises(RuntimeError, match="no weights"):
        empty(torch.rand(1, 1, 32, 32, 32))
    nn.Sequential(empty).load_state_dict(nn.Sequential(loaded(weights=anatomix_weights)).state_dict())
    assert torch.isfinite(empty(torch.rand(1, 1, 32, 32, 32))).all()


def test_computes_without_gradient(anatomix_weights):
    x = torch.rand(1, 1, 32, 32, 32, requires_grad=True)
    assert not loaded(weights=anatomix_weights)(x).requires_grad


def test_part_of_a_state_dict_does_not_count_as_weights(anatomix_weights):
    whole = loaded(weights=anatomix_weights).state_dict()
    empty = Anatomix()
    assert all(parameter.isnan().all() for parameter in empty.parameters() if parameter.is_floating_point())
    empty.load_state_dict(dict(list(whole.items())[:-1]), strict=False)
    assert not empty.has_weights
    unloaded = Anatomix().state_dict()
    empty.load_state_dict(unloaded)
    assert not empty.has_weights, "NaN is not a weight"


def test_weights_folded_for_another_layer_are_refused(anatomix_weights):
    """nnU-Net's -pretrained_weights selects tensors by name and shape, which match although one of them is folded."""
    final = loaded(layer="final", weights=anatomix_weights).state_dict()
    penultimate = Anatomix()
    picked = {key: final[key] for key in penultimate.state_dict()}
    with pytest.raises(RuntimeError, match="anatomix for layer 'final', not 'penultimate'"):
        penultimate.load_state_dict(picked)
    assert not penultimate.has_weights


def test_weights_that_are_not_finite_are_refused(anatomix_weights):
    broken = anatomix_weights | {"model.4.running_var": torch.full((16,), float("nan"))}
    with pytest.raises(ValueError, match=r"model\.4\.running_var has values that are not finite"):
        Anatomix().load_published(broken)


@pytest.mark.parametrize(
    ("key", "change", "problem"),
    [
        ("model.4.running_var", lambda v: -v, "has a negative variance"),
        ("model.0.weight", lambda v: v * 1e30, "has a value of"),
        ("model.0.weight", lambda v: v.bool(), "has bool values"),
        ("model.0.weight", lambda v: v.to("meta"), "is a meta tensor"),
    ],
)
def test_implausible_weights_are_refused(key, change, problem, anatomix_weights):
    with pytest.raises(ValueError, match=rf"{key} {problem}"):
        Anatomix().load_published(anatomix_weights | {key: change(anatomix_weights[key])})


def test_a_checkpoint_with_implausible_extractor_weights_is_refused(anatomix_weights):
    state = loaded(weights=anatomix_weights).state_dict()
    key = next(key for key, value in state.items() if value.ndim == 5)
    for value in (float("inf"), 1e30):
        extractor = loaded(weights=anatomix_weights)
        with pytest.raises(RuntimeError, match=f"extractor cannot be used: {key} has"):
            extractor.load_state_dict(state | {key: torch.full_like(state[key], value)})
        assert not extractor.has_weights


def test_other_published_files_are_refused_by_name():
    vit = {"down_projection.proj.weight": torch.zeros(1), "eva.blocks.0.attn.q_proj.weight": torch.zeros(1)}
    may = {"model.0.weight": torch.zeros(20, 1, 3, 3, 3)}
    for variant in VARIANTS:
        with pytest.raises(ValueError, match=rf"Vision Transformer, like anatomix-dev-vit\.pth.* use {variant}\.pth"):
            Anatomix(variant).load_published(vit)
        with pytest.raises(ValueError, match=r"anatomix-dev\.pth of May 2026, which its authors replaced"):
            Anatomix(variant).load_published(may)
    with pytest.raises(ValueError, match=r"it is anatomix-dev\.pth, which is for extractor 'anatomix-dev'"):
        Anatomix("anatomix").load_published(random_weights("anatomix-dev"))


def test_voxelwise_normalization_by_hand():
    x = torch.tensor([3.0, 0.0, -4.0, 0.0]).reshape(1, 2, 2, 1)  # voxels (3, -4) and (0, 0)
    assert unit_norm(x).flatten().tolist() == pytest.approx([0.6, 0.0, -0.8, 0.0])
    half = unit_norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    double = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_norm, double)


def test_the_larger_variant_has_unit_norm_in_every_voxel_by_default():
    weights = random_weights("anatomix-dev")
    x = torch.rand(2, 1, 64, 64, 64)
    x[1] = 3  # a constant patch, whose features are zero
    extractor = loaded("anatomix-dev", weights=weights)
    with torch.no_grad():
        raw = extractor.features(minmax(x[:1]))
    s = extractor(x)
    torch.testing.assert_close(s[:1], raw / raw.square().sum(1, keepdim=True).sqrt(), rtol=1e-4, atol=1e-5)
    assert torch.equal(s[1:], torch.zeros_like(s[1:]))
    extractor.normalize = "instance"
    torch.testing.assert_close(extractor(x)[:1], instance_norm(raw), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_stay_wide_when_the_network_is_cast(dtype, anatomix_weights):
    extractor, x = loaded(weights=anatomix_weights), torch.rand(1, 1, 32, 32, 32).to(dtype)
    expected = extractor(x.float())
    parent = nn.Sequential(nn.Conv3d(1, 1, 1), extractor).to(dtype)
    assert parent[0].weight.dtype == dtype
    assert {p.dtype for p in extractor.parameters() if p.is_floating_point()} == {torch.float32}
    assert extractor(x).dtype == dtype
    torch.testing.assert_close(extractor(x), expected.to(dtype))
    assert extractor.double()(x.double()).dtype == torch.float64


def test_an_image_in_float64_is_accepted(anatomix_weights):
    extractor, x = loaded(weights=anatomix_weights), torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(extractor(x.double()), extractor(x), rtol=1e-3, atol=1e-3)


def test_invalid_inputs_arguments_and_layouts_are_refused(anatomix_weights):
    extractor = loaded(weights=anatomix_weights)
    with pytest.raises(ValueError, match=r"\(B, 1, X, Y, Z\); got \(1, 1, 32, 32\)"):
        extractor(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"patch too small: .*\(1, 32, 32\)"):
        extractor(torch.rand(1, 1, 1, 32, 32))
    with pytest.raises(ValueError, match="layer must be one of penultimate, final; got 'last'"):
        Anatomix(layer="last")
    with pytest.raises(ValueError, match="variant must be one of anatomix, anatomix-dev; got 'x'"):
        Anatomix("x")
    wrong = dict(anatomix_weights)
    wrong["model.0.weight"] = torch.zeros(16, 1, 5, 5, 5)
    del wrong["model.3.weight"]
    with pytest.raises(ValueError, match=r"model\.3\.weight is missing, model\.0\.weight has shape \(16, 1, 5, 5, 5\)"):
        Anatomix().load_published(wrong)


def test_a_file_saved_from_a_compiled_network_is_read(tmp_path, anatomix_weights):
    torch.save({f"_orig_mod.{key}": value for key, value in anatomix_weights.items()}, tmp_path / "compiled.pth")
    x = torch.rand(1, 1, 32, 32, 32)
    built = build_extractor("anatomix", weights=tmp_path / "compiled.pth")
    torch.testing.assert_close(built(x), loaded(weights=anatomix_weights)(x))


def test_build_extractor_sets_the_normalization(tmp_path, anatomix_weights):
    torch.save(anatomix_weights, tmp_path / "mine.pth")
    s = build_extractor("anatomix", weights=tmp_path / "mine.pth", normalize="voxelwise")(torch.rand(1, 1, 32, 32, 32))
    torch.testing.assert_close(s.norm(dim=1), torch.ones(1, 32, 32, 32))
    with pytest.raises(ValueError, match="normalize must be one of instance, voxelwise, or None; got 'batch'"):
        build_extractor("mind", normalize="batch")


def test_build_extractor_reads_a_given_file(tmp_path, anatomix_weights):
    torch.save(anatomix_weights, tmp_path / "mine.pth")
    x = torch.rand(1, 1, 32, 32, 32)
    built = build_extractor("anatomix", weights=tmp_path / "mine.pth", layer="final")
    assert built.out_channels == 16
    torch.testing.assert_close(built(x), loaded(layer="final", weights=anatomix_weights)(x))
