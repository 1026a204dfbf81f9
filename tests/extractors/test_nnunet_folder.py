import json
import zipfile

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunet_model import write_model

from nnunet_dg.extractors import build_extractor
from nnunet_dg.extractors.weights import WeightsError


def penultimate(model, x):
    """The input of the last segmentation layer, captured by a hook."""
    seen = []
    handle = model.decoder.seg_layers[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("network", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("dims", [2, 3])
def test_features_are_the_input_of_the_last_segmentation_layer(tmp_path, network, dims):
    model = write_model(tmp_path, dims, network)
    x = torch.rand(2, 1, *[8, 16, 12][:dims])
    scaled = torch.stack([(sample - sample.min()) / (sample.max() - sample.min()) for sample in x])
    expected = torch.nn.functional.instance_norm(penultimate(model, scaled))
    extractor = build_extractor("nnunet", weights=tmp_path)
    assert extractor.out_channels == 6
    torch.testing.assert_close(extractor(x), expected, atol=1e-4, rtol=1e-4)


def test_zscore_scaling_normalizes_the_input_as_nnunet_does(tmp_path):
    model = write_model(tmp_path)
    x = 7 + 3 * torch.rand(1, 1, 8, 16, 12)
    expected = torch.nn.functional.instance_norm(penultimate(model, (x - x.mean()) / x.std(correction=0)))
    torch.testing.assert_close(
        build_extractor("nnunet", weights=tmp_path, scaling="zscore")(x), expected, atol=1e-4, rtol=1e-4
    )


def test_input_channels_beyond_the_first_are_zero(tmp_path):
    model = write_model(tmp_path, input_channels=8)  # like nnInteractive, with an image and seven prompts
    x = torch.rand(1, 1, 8, 16, 12)
    prompts = torch.zeros(1, 7, 8, 16, 12)
    low, high = x.min(), x.max()
    expected = torch.nn.functional.instance_norm(penultimate(model, torch.cat([(x - low) / (high - low), prompts], 1)))
    torch.testing.assert_close(build_extractor("nnunet", weights=tmp_path)(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(5, 31, 17), (2, 40, 3)])
def test_any_patch_size_is_accepted(tmp_path, shape):
    write_model(tmp_path)
    s = build_extractor("nnunet", weights=tmp_path)(torch.rand(1, 1, *shape))
    assert s.shape == (1, 6, *shape)
    assert s.isfinite().all()


def test_is_frozen_and_stays_in_eval_mode(tmp_path):
    write_model(tmp_path)
    extractor = build_extractor("nnunet", weights=tmp_path)
    torch.nn.Sequential(extractor).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    assert not extractor(torch.rand(1, 1, 8, 8, 8, requires_grad=True)).requires_grad


def test_fold_all_and_final_checkpoints_are_preferred(tmp_path):
    write_model(tmp_path, fold="fold_0", checkpoint="checkpoint_best.pth")
    write_model(tmp_path, fold="fold_3")
    write_model(tmp_path, fold="fold_all")
    used = build_extractor("nnunet", weights=tmp_path).load_folder(tmp_path)
    assert used == tmp_path / "fold_all" / "checkpoint_final.pth"
    used.unlink()
    assert build_extractor("nnunet", weights=tmp_path).load_folder(tmp_path).parent.name == "fold_3"


def test_the_model_folder_determines_the_dimensions(tmp_path):
    write_model(tmp_path, dims=2)
    assert build_extractor("nnunet", weights=tmp_path)(torch.rand(1, 1, 9, 14)).shape == (1, 6, 9, 14)
    with pytest.raises(NotImplementedError, match="'nnunet' is 2-D only, but 3-D is needed"):
        build_extractor("nnunet", weights=tmp_path, spatial_dims=3)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_saved_from_a_wrapped_network_are_read(tmp_path, prefix):
    write_model(tmp_path)
    x = torch.rand(1, 1, 8, 8, 8)
    expected = build_extractor("nnunet", weights=tmp_path)(x)
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    content["network_weights"] = {prefix + key: value for key, value in content["network_weights"].items()}
    torch.save(content, path)
    torch.testing.assert_close(build_extractor("nnunet", weights=tmp_path)(x), expected)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_logs_written_with_numpy_1_and_numpy_2_are_read(tmp_path, module):
    """Their pickles differ in the name of one module."""
    write_model(tmp_path)
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    numbers = [np.dtype(kind).type(1) for kind in "efdilqILQ?"] + [np.arange(3.0)]
    torch.save(torch.load(path, weights_only=False) | {"logging": numbers}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    own = b"numpy._core.multiarray" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else b"numpy.core.multiarray"
    pickled = next(name for name in parts if name.endswith("data.pkl"))
    assert own in parts[pickled]
    parts[pickled] = parts[pickled].replace(short(own), short(module))
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    build_extractor("nnunet", weights=tmp_path)


def short(name):
    """A module's name in pickle protocol 2: after the GLOBAL opcode, and ended by a line feed."""
    return b"c" + name + b"\n"


def test_the_lowest_fold_is_used(tmp_path):
    for fold in ("fold_4", "fold_1", "fold_2"):
        write_model(tmp_path, fold=fold)
    assert build_extractor("nnunet", weights=tmp_path).load_folder(tmp_path).parent.name == "fold_1"


def bad_no_plans(folder):
    (folder / "plans.json").unlink()
    return "is not a trained model of nnU-Net"


def bad_no_checkpoint(folder):
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    return "is not a trained model of nnU-Net"


def bad_truncated(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:1000])
    return "cannot be read"


class Payload:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def bad_code(folder):
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"payload": Payload()}, path)
    return "cannot be read"


def bad_other_weights(folder):
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [6, 8, 12]
    (folder / "plans.json").write_text(json.dumps(plans))
    return "does not match the planned network"


def bad_network_class(folder):
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "os.system"
    (folder / "plans.json").write_text(json.dumps(plans))
    return "The model's network is a system"


def bad_configuration(folder):
    (folder / "plans.json").write_text(json.dumps({"configurations": {}}))
    return "plans.json: configurations: Dictionary should have at least 1 item"


def bad_json(folder):
    (folder / "plans.json").write_text("{")
    return "plans.json: not valid JSON, or cut off"


def bad_circle(folder):
    (folder / "plans.json").write_text(json.dumps({"configurations": {"mine": {"inherits_from": "mine"}}}))
    return "do not describe a network"


def bad_old_plans(folder):
    plans = json.loads((folder / "plans.json").read_text())
    del plans["configurations"]["3d_fullres"]["architecture"]
    (folder / "plans.json").write_text(json.dumps(plans))
    return "do not describe a network: KeyError.*UNet_class_name"


@pytest.mark.parametrize(
    "damage",
    [
        bad_no_plans,
        bad_no_checkpoint,
        bad_truncated,
        bad_code,
        bad_other_weights,
        bad_network_class,
        bad_old_plans,
        bad_configuration,
        bad_json,
        bad_circle,
    ],
)
def test_an_invalid_folder_is_refused_with_the_reason(tmp_path, damage, capsys):
    write_model(tmp_path)
    message = damage(tmp_path)
    with pytest.raises(WeightsError, match=message):
        build_extractor("nnunet", weights=tmp_path)
    assert "ran" not in capsys.readouterr().out


def test_a_missing_folder_setting_is_an_error():
    with pytest.raises(WeightsError, match=r"set weights .* to the folder of a trained model"):
        build_extractor("nnunet")


def old_style(folder, base_features=6):
    """Rewrite the plans of a model folder in the format before nnU-Net 2.5, where an architecture is a few numbers."""
    plans = json.loads((folder / "plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "patch_size": [16, 16, 16], "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": base_features,
        "n_conv_per_stage_encoder": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1], "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": arguments["strides"], "conv_kernel_sizes": arguments["kernel_sizes"],
        "unet_max_num_features": 320,
    }  # fmt: skip
    (folder / "plans.json").write_text(json.dumps(plans))


@pytest.mark.filterwarnings("error")
def test_plans_from_before_nnunet_2_5_are_converted_by_nnunet(tmp_path):
    model = write_model(tmp_path, features=(6, 12, 24))
    x = torch.rand(1, 1, 8, 16, 12)
    expected = torch.nn.functional.instance_norm(penultimate(model, (x - x.min()) / (x.max() - x.min())))
    old_style(tmp_path)
    torch.testing.assert_close(build_extractor("nnunet", weights=tmp_path)(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.fill_(float("nan")), "has values that are not finite"),
        (lambda w: w.fill_(1e30), r"has a value of 1\.0e\+30"),
        (lambda w: w.to(torch.int64), "has int64 values"),
        (lambda w: w.to(torch.complex64), "has complex64 values"),
        (lambda w: w.to_sparse(), "sparse"),
    ],
)
def test_implausible_weights_are_refused_by_name(tmp_path, change, message):
    write_model(tmp_path)
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    key = "encoder.stages.1.0.convs.0.conv.weight"
    content["network_weights"][key] = change(content["network_weights"][key])
    torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"checkpoint_final\.pth does not contain .*{key} .*{message}"):
        build_extractor("nnunet", weights=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [c], "it contains a list"),
        (lambda c: c | {"network_weights": None}, "no network_weights"),
        (lambda c: c | {"network_weights": {"a": 1}}, "the weight a is not a tensor, but int"),
        (lambda c: {"network_weights": c["network_weights"]}, "no init_args"),
        (lambda c: c | {"init_args": {"configuration": 3}}, "no init_args with a configuration"),
        (lambda c: c | {"init_args": {"configuration": "other"}}, "do not describe a network"),
    ],
)
def test_invalid_checkpoints_are_refused(tmp_path, change, message):
    write_model(tmp_path)
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    torch.save(change(torch.load(path, weights_only=False)), path)
    with pytest.raises(WeightsError, match=message):
        build_extractor("nnunet", weights=tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"null", b"\xff\xfe", b"\0" * 40, b'{"configurations": []}', b"{} {}"])
def test_invalid_plans_are_refused(tmp_path, content):
    write_model(tmp_path)
    (tmp_path / "plans.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"plans\.json"):
        build_extractor("nnunet", weights=tmp_path)


def test_an_architecture_that_cannot_be_built_is_refused(tmp_path):
    write_model(tmp_path)
    plans = json.loads((tmp_path / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_stages"] = "three"
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="architecture is not one of nnU-Net's plans"):
        build_extractor("nnunet", weights=tmp_path)
