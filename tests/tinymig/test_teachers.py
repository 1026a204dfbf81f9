"""Teachers: maps of the frozen model, scaling, adapters, weights and errors."""

from dataclasses import replace

import pytest
import timm
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunet_model import write_model
from torch.nn import functional as F

from nnunet_dg.errors import SettingsError, VersionError
from nnunet_dg.extractors import build_extractor
from nnunet_dg.extractors.synthetic_network import halved
from nnunet_dg.extractors.weights import WeightsError
from nnunet_dg.tensors import minmax
from nnunet_dg.tinymig import Teaching, TinyMIGSettings, build_teacher, load_teacher
from nnunet_dg.tinymig.teachers import _level_adapter, fingerprint

VIT = "vit_tiny_patch16_224"
SAM = "samvit_base_patch16"


def taught(patch=(40, 24), depths=4, **settings):
    settings = TinyMIGSettings(**({"teacher": f"random:{VIT}"} | settings))
    teacher = build_teacher(settings, patch, depths)
    load_teacher(teacher, settings, len(patch))
    return teacher


@pytest.fixture
def plain_vit():
    torch.manual_seed(0)
    return timm.create_model(VIT, num_classes=0, dynamic_img_size=True).eval()


@pytest.mark.parametrize(("depths", "blocks"), [(4, [2, 5, 8, 11]), (3, [3, 7, 11]), (1, [11])])
def test_the_maps_of_a_vit_come_from_evenly_spaced_blocks(depths, blocks, plain_vit):
    teacher = taught(depths=depths)
    image = 100 * torch.rand(2, 1, 40, 24) - 30
    scaled = F.interpolate(minmax(image), (48, 32), mode="bilinear")
    mean, std = (torch.tensor(plain_vit.pretrained_cfg[k]).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    expected = plain_vit.forward_intermediates((scaled - mean) / std, indices=blocks, intermediates_only=True)
    maps = teacher.features(image)
    assert [tuple(m.shape) for m in maps] == [(2, 192, 3, 2)] * depths
    for a, b in zip(maps, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("scaling", ["minmax", "zscore", "timm", None])
def test_the_input_of_a_vit_has_the_scaling_of_the_settings(scaling, plain_vit):
    teacher = taught((32, 32), teacher_scaling=scaling)
    image = 100 * torch.rand(1, 1, 32, 32) - 30
    mean, std = (torch.tensor(plain_vit.pretrained_cfg[k]).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    low, high = image.min(), image.max()
    unit = ((image - low) / (high - low)).expand(-1, 3, -1, -1)
    shown = {
        "minmax": unit,
        "zscore": ((image - image.mean()) / image.std(correction=0)).expand(-1, 3, -1, -1),
        "timm": (unit - mean) / std,
        None: (unit - mean) / std,
    }[scaling]
    expected = plain_vit.forward_intermediates(shown, indices=[2, 5, 8, 11], intermediates_only=True)
    for a, b in zip(teacher.features(image), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_scaling_timm_is_refused_for_other_teachers_than_vits():
    with pytest.raises(SettingsError, match=r"teacher_scaling 'timm' is for ViTs.*'anatomix' takes minmax or zscore"):
        taught((32, 32, 32), teacher="random:anatomix", teacher_scaling="timm")


@pytest.mark.parametrize("name", [VIT, SAM])
def test_an_adapter_is_parallel_to_the_mlp_of_every_block(name):
    teacher = taught((32, 32), teacher=f"random:{name}")
    seen = {}
    assert len(teacher.adapters) == len(teacher.frozen.blocks) == 12
    for block, adapter in zip(teacher.frozen.blocks, teacher.adapters, strict=True):
        torch.nn.init.normal_(adapter.body[-1].weight)
        assert adapter.body[0].out_features == adapter.body[0].in_features // 4
        block.norm2.register_forward_hook(lambda m, _, output: seen.__setitem__(m, output.detach()))
        block.mlp.register_forward_hook(lambda m, inputs, output: seen.__setitem__(m, (inputs[0], output)))
    with torch.no_grad():
        teacher.features(torch.randn(1, 1, 32, 32))
        for block, adapter in zip(teacher.frozen.blocks, teacher.adapters, strict=True):
            tokens, output = seen[block.mlp]
            assert tokens.shape[-1] == seen[block.norm2].shape[-1]
            plain = block.mlp.fc2(block.mlp.act(block.mlp.fc1(tokens)))
            torch.testing.assert_close(output, plain + 0.5 * adapter.body(tokens), rtol=1e-4, atol=1e-4)
            assert not torch.allclose(output, plain, rtol=1e-2)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("convolutions", [1, 2])
def test_an_adapter_is_parallel_to_the_last_block_of_every_level(residual, convolutions):
    network = unet(residual, convolutions)
    for level, width in zip([*network.encoder.stages, *network.decoder.stages], (4, 8, 16, 8, 4), strict=True):
        block, adapter = _level_adapter(level, 2, width, None)
        torch.nn.init.normal_(adapter.body[-1].weight)
        block.register_forward_hook(lambda _, inputs, output, a=adapter: output + a(inputs[0], output.shape[2:]))
        assert adapter.body[1].out_channels == max(width // 4, 4)
    image = torch.rand(1, 1, 16, 16)
    assert network(image).shape == (1, 2, 16, 16)
    network(image).square().mean().backward()


def unet(residual, convolutions):
    kind = ResidualEncoderUNet if residual else PlainConvUNet
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    options = {blocks: [convolutions] * 3, "n_conv_per_stage_decoder": [convolutions] * 2, "conv_bias": True}
    options |= {"norm_op": torch.nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}, "nonlin": torch.nn.LeakyReLU}
    options |= {"nonlin_kwargs": {"inplace": True}, "num_classes": 2}
    return kind(1, 3, [4, 8, 16], torch.nn.Conv2d, 3, [1, 2, 2], **options)


def test_a_checkpoint_of_an_earlier_revision_is_refused():
    teaching = Teaching(taught(), [4] * 4, [(40, 24), (20, 12), (10, 6), (5, 3)], 2)
    state = teaching.state_dict()
    teaching.load_state_dict(state)
    del state["revision"]
    with pytest.raises(VersionError, match=r"another version of TinyMIG \(revision 1, now 2\).*-pretrained_weights"):
        teaching.load_state_dict(state)


def test_a_vit_sees_three_channels_at_once_and_two_channels_separately():
    teacher = taught(patch=(32, 32))
    image = torch.rand(2, 3, 32, 32)
    gray = image[:, :1].expand(-1, 3, -1, -1)
    assert not torch.allclose(teacher.features(image)[0], teacher.features(gray)[0])
    torch.testing.assert_close(teacher.features(gray), teacher.features(image[:, :1]))
    two = teacher.features(image[:, :2])
    one = [teacher.features(image[:, i : i + 1]) for i in range(2)]
    for both, first, second in zip(two, *one, strict=True):
        torch.testing.assert_close(both, (first + second) / 2)


def test_the_maps_of_anatomix_are_its_decoders_levels_and_the_finest_the_extractors_features(
    tmp_path, anatomix_weights
):
    torch.save(anatomix_weights, tmp_path / "anatomix.pth")
    teacher = taught((32, 40, 32), teacher="anatomix", weights=str(tmp_path / "anatomix.pth"))
    extractor = build_extractor("anatomix", weights=tmp_path / "anatomix.pth")
    image = torch.randn(2, 1, 32, 40, 32)
    maps = teacher.features(image)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 48, 32), (32, 16, 24, 16), (64, 8, 12, 8), (128, 4, 6, 4)]
    resized = F.interpolate(minmax(image), (32, 48, 32), mode="trilinear")
    torch.testing.assert_close(maps[0], extractor.features(resized))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_maps_of_synthetic_are_its_features_and_its_coarse_level(dims):
    patch = (32, 40, 24)[:dims]
    teacher = taught(patch, teacher="synthetic")
    image = torch.randn(2, 1, *patch)
    maps = teacher.features(image)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, *patch), (24, *(n // 2 for n in patch))]
    extractor = build_extractor("synthetic", spatial_dims=dims)
    network, seen = extractor.network, minmax(image)
    torch.testing.assert_close(maps[0], extractor.features(seen))
    fine = network.fine(network.stem(seen - seen.mean(tuple(range(1, seen.ndim)), keepdim=True)))
    torch.testing.assert_close(maps[1], network.coarse(halved(fine)))
    assert len(teacher.adapters) == 3  # of the fine level, the coarse level and the mixture


@pytest.mark.parametrize("dims", [2, 3])
def test_an_nnunet_model_folder_teaches_in_its_own_dimension(tmp_path, dims):
    folder = tmp_path / "model"
    trained = write_model(folder, dims=dims)
    patch = (24, 20, 16)[:dims]
    settings = TinyMIGSettings(teacher="nnunet", weights=str(folder)).completed()
    teacher = build_teacher(settings, patch, 4)
    load_teacher(teacher, settings, dims)
    image = torch.randn(1, 1, *patch)
    maps = teacher.features(image)
    assert [m.shape[1] for m in maps] == [6, 8]
    decoder, seen = trained.decoder, []
    for stage in decoder.stages:
        stage.register_forward_hook(lambda _, __, output: seen.append(output))
    trained(minmax(image))
    for actual, expected in zip(maps, reversed(seen), strict=True):
        torch.testing.assert_close(actual, expected)
    zscored = build_teacher(replace(settings, teacher_scaling="zscore"), patch, 4)
    load_teacher(zscored, settings, dims)
    assert not torch.allclose(zscored.features(image)[0], maps[0])
    torch.testing.assert_close(zscored.features(100 * image + 7), zscored.features(image), atol=1e-4, rtol=1e-4)
    with pytest.raises(NotImplementedError, match=f"'nnunet' is {dims}-D, but the configuration is {5 - dims}-D"):
        build_teacher(settings, (24, 20, 16)[: 5 - dims], 4)


def test_a_model_with_two_channels_sees_two_at_once_and_a_single_one_in_the_first(tmp_path):
    trained = write_model(tmp_path / "model", dims=2, input_channels=2)
    settings = TinyMIGSettings(teacher="nnunet", weights=str(tmp_path / "model")).completed()
    teacher = build_teacher(settings, (24, 20), 4)
    load_teacher(teacher, settings, 2)
    seen = []
    trained.decoder.stages[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    image = minmax(torch.randn(1, 2, 24, 20))
    first_only = image * torch.tensor([1.0, 0]).reshape(1, 2, 1, 1)
    for shown, expected in ((image, image), (image[:, :1], first_only)):
        trained(expected)
        torch.testing.assert_close(teacher.features(shown)[0], seen.pop())
    assert not torch.allclose(teacher.features(image)[0], teacher.features(image.flip(1))[0])


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        (f"random:{VIT}", (32, 32)),
        (f"random:{SAM}", (32, 48)),
        ("anatomix", (32, 32, 32)),
        ("synthetic", (32, 32)),
        ("synthetic", (32, 32, 32)),
    ],
)
def test_only_adapters_learn_and_are_in_the_state_dict(name, patch, tmp_path, anatomix_weights):
    torch.save(anatomix_weights, tmp_path / "anatomix.pth")
    teacher = taught(patch, teacher=name, weights=str(tmp_path / "anatomix.pth") if name == "anatomix" else None)
    before, start = fingerprint(teacher.frozen), {k: v.clone() for k, v in teacher.state_dict().items()}
    frozen = {id(p) for p in teacher.frozen.parameters()}
    assert frozen
    assert not frozen & {id(p) for p in teacher.parameters()}
    optimizer = torch.optim.SGD(teacher.parameters(), 1e-3)
    teacher.train()
    assert not teacher.frozen.training
    image = torch.randn(1, 1, *patch)
    first = teacher.features(image)
    directions = [torch.randn_like(m) for m in first]
    for _ in range(2):  # adapters are initialized to zero, so their first layer learns from the second step on
        optimizer.zero_grad()
        sum((m * d).sum() for m, d in zip(teacher.features(image), directions, strict=True)).backward()
        assert all(torch.isfinite(p.grad).all() for p in teacher.parameters())
        optimizer.step()
    assert fingerprint(teacher.frozen) == before
    after = teacher.state_dict()
    assert set(after) == {"fingerprint", *(k for k in after if k.startswith("adapters."))}
    assert not [k for k in after if k != "fingerprint" and torch.equal(after[k], start[k])]
    assert all(not torch.equal(a, b) for a, b in zip(first, teacher.features(image), strict=True))


def test_without_co_training_the_teacher_has_no_trainable_parameters():
    teacher = taught(ablate=["co_training"])
    assert not list(teacher.parameters())
    assert not teacher.features(torch.randn(1, 1, 40, 24))[0].requires_grad


def test_random_weights_are_reproducible_and_used_only_if_set():
    for name, patch in ((VIT, (32, 32)), ("anatomix", (32, 32, 32)), ("synthetic", (32, 32))):
        settings = TinyMIGSettings(teacher=f"random:{name}")
        first, second = build_teacher(settings, patch, 4), build_teacher(settings, patch, 4)
        load_teacher(first, settings, len(patch))
        state = torch.random.get_rng_state()
        load_teacher(second, settings, len(patch))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert fingerprint(first.frozen) == fingerprint(second.frozen)
        assert all(p.isfinite().all() for p in first.frozen.parameters())
    settings = TinyMIGSettings(teacher=VIT)
    with pytest.raises(RuntimeError, match="has no weights yet"):
        build_teacher(settings, (32, 32), 4).features(torch.randn(1, 1, 32, 32))


def test_a_training_resumes_only_with_the_same_teacher(tmp_path):
    first = taught().state_dict()
    settings = TinyMIGSettings(teacher=VIT, weights=str(tmp_path / "other.pth"))
    torch.save(timm.create_model(VIT).state_dict(), tmp_path / "other.pth")
    teacher = build_teacher(settings, (32, 32), 4)
    load_teacher(teacher, settings, 2)
    state = teacher.state_dict()
    other = build_teacher(settings, (32, 32), 4)
    other.load_state_dict(state)
    load_teacher(other, settings, 2)
    other.load_state_dict(first)
    with pytest.raises(ValueError, match=f"trained with other weights of teacher '{VIT}'.*other.pth"):
        load_teacher(other, settings, 2)


@pytest.mark.parametrize(
    ("teacher", "patch", "error", "message"),
    [
        (
            "vit_tiny_patch16_225",
            (32, 32),
            ValueError,
            "name of a ViT in timm; got .*Close to it: .*vit_tiny_patch16_224",
        ),
        ("resnet18", (32, 32), ValueError, "timm's resnet18 is not a ViT that takes images of any size"),
        (
            "beit_base_patch16_224",
            (32, 32),
            ValueError,
            "beit_base_patch16_224 is not a ViT that takes images of any size",
        ),
        ("hiera_tiny_224", (32, 32), ValueError, "hiera_tiny_224 is not a ViT"),
        (
            "mind",
            (32, 32, 32),
            ValueError,
            "teacher must be anatomix, synthetic, nnunet, or the name of a ViT in timm; got 'mind'",
        ),
        (
            VIT,
            (32, 32, 32),
            NotImplementedError,
            f"teacher '{VIT}' is 2-D, but the configuration is 3-D. In 3-D, use anatomix",
        ),
        (
            "anatomix",
            (32, 32),
            NotImplementedError,
            "teacher 'anatomix' is 3-D, but the configuration is 2-D.*in 2-D, use a ViT in timm",
        ),
        (VIT, (12, 40), ValueError, f"planned patch, 12 x 40, is smaller than the patches of teacher '{VIT}', 16 x 16"),
    ],
)
def test_a_teacher_that_is_unknown_or_does_not_fit_is_refused(teacher, patch, error, message):
    with pytest.raises(error, match=message):
        build_teacher(TinyMIGSettings(teacher=teacher), patch, 4)


def test_a_missing_model_folder_is_named_in_the_error():
    with pytest.raises(WeightsError, match=r"set weights .* to the folder of a trained model"):
        TinyMIGSettings(teacher="nnunet").completed()
