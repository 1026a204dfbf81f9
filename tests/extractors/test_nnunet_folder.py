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
    """What goes into the last segmentation layer, by a hook."""
    seen = []
    handle = model.decoder.seg_layers[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("network", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("dims", [2, 3])
def test_gives_what_the_last_segmentation_layer_sees(tmp_path, network, dims):
    model = write_model(tmp_path, dims, network)
    x = torch.rand(2, 1, *[8, 16, 12][:dims])
    scaled = torch.stack([(sample - sample.min()) / (sample.max() - sample.min()) for sample in x])
    expected = torch.nn.functional.instance_norm(penultimate(model, scaled))
    extractor = build_extractor("nnunet", weights=tmp_path)
    assert extractor.out_channels == 6
    torch.testing.assert_close(extractor(x), expected, atol=1e-4, rtol=1e-4)


def test_zscore_scaling_gives_the_network_what_nnunet_trained_it_on(tmp_path):
    model = write_model(tmp_path)
    x = 7 + 3 * torch.rand(1, 1, 8, 16, 12)
    expected = torch.nn.functional.instance_norm(penultimate(model, (x - x.mean()) / x.std(correction=0)))
    torch.testing.assert_close(
        build_extractor("nnunet", weights=tmp_path, scaling="zscore")(x), expected, atol=1e-4, rtol=1e-4
    )


def test_input_channels_beyond_the_first_are_zero(tmp_path):
    model = write_model(tmp_path, input_channels=8)  # as nnInteractive: an image and seven prompts
    x = torch.rand(1, 1, 8, 16, 12)
    prompts = torch.zeros(1, 7, 8, 16, 12)
    low, high = x.min(), x.max()
    expected = torch.nn.functional.instance_norm(penultimate(model, torch.cat([(x - low) / (high - low), prompts], 1)))
    torch.testing.assert_close(build_extractor("nnunet", weights=tmp_path)(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(5, 31, 17), (2, 40, 3)])
def test_any_patch_size(tmp_path, shape):
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


def test_takes_fold_all_first_and_final_before_best(tmp_path):
    write_model(tmp_path, fold="fold_0", checkpoint="checkpoint_best.pth")
    write_model(tmp_path, fold="fold_3")
    write_model(tmp_path, fold="fold_all")
    used = build_extractor("nnunet", weights=tmp_path).load_folder(tmp_path)
    assert used == tmp_path / "fold_all" / "checkpoint_final.pth"
    used.unlink()
    assert build_extractor("nnunet", weights=tmp_path).load_folder(tmp_path).parent.name == "fold_3"


def test_dimensions_are_the_folders(tmp_path):
    write_model(tmp_path, dims=2)
    assert build_extractor("nnunet", weights=tmp_path)(torch.rand(1, 1, 9, 14)).shape == (1, 6, 9, 14)
    with pytest.raises(NotImplementedError, match="'nnunet' is 2-D only, asked for 3-D; 'mind' works in 2-D and 3-D"):
        build_extractor("nnunet", weights=tmp_path, spatial_dims=3)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_saved_from_a_wrapped_network(tmp_path, prefix):
    write_model(tmp_path)
    x, expected = torch.rand(1, 1, 8, 8, 8), None
    expected = build_extractor("nnunet", weights=tmp_path)(x)
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    content["network_weights"] = {prefix + key: value for key, value in content["network_weights"].items()}
    torch.save(content, path)
    torch.testing.assert_close(build_extractor("nnunet", weights=tmp_path)(x), expected)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_logs_that_numpy_1_and_numpy_2_wrote(tmp_path, module):
    """The pickles differ in the name of one module."""
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
    """A module's name as protocol 2 writes it: the GLOBAL opcode, ended by a line feed."""
    return b"c" + name + b"\n"


def test_lowest_fold_by_name(tmp_path):
    for fold in ("fold_4", "fold_1", "fold_2"):
        write_model(tmp_path, fold=fold)
    assert build_extractor("nnunet", weights=tmp_path).load_folder(tmp_path).parent.name == "fold_1"


def bad_no_plans(folder):
    (folder / "plans.json").unlink()
    return "is no trained model of nnU-Net"


def bad_no_checkpoint(folder):
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    return "is no trained model of nnU-Net"


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
    return "does not hold the network that is asked for"


def bad_network_class(folder):
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "os.system"
    (folder / "plans.json").write_text(json.dumps(plans))
    return "The model's network is a system"


def bad_configuration(folder):
    (folder / "plans.json").write_text(json.dumps({"configurations": {}}))
    return "plans.json and .* do not describe a network: KeyError"


def bad_json(folder):
    (folder / "plans.json").write_text("{")
    return "plans.json and .* do not describe a network"


def bad_circle(folder):
    (folder / "plans.json").write_text(json.dumps({"configurations": {"mine": {"inherits_from": "mine"}}}))
    return "do not describe a network"


def bad_old_plans(folder):
    plans = json.loads((folder / "plans.json").read_text())
    del plans["configurations"]["3d_fullres"]["architecture"]
    (folder / "plans.json").write_text(json.dumps(plans))
    return "nnU-Net before 2.5"


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
def test_a_folder_that_cannot_be_used_is_refused_by_what_is_wrong(tmp_path, damage, capsys):
    write_model(tmp_path)
    message = damage(tmp_path)
    with pytest.raises(WeightsError, match=message):
        build_extractor("nnunet", weights=tmp_path)
    assert "ran" not in capsys.readouterr().out


def test_needs_a_folder():
    with pytest.raises(WeightsError, match=r"set weights .* to the folder of a trained model"):
        build_extractor("nnunet")
