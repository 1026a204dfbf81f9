"""A model folder of nnU-Net's own network with random weights, and labeled cases, created in a second."""

import json

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

DATASET_JSON = {
    "channel_names": {"0": "MRI"}, "labels": {"background": 0, "box": 1, "core": 2}, "numTraining": 2,
    "file_ending": ".nii.gz",
}  # fmt: skip
DATASET = "Dataset701_Tiny"
CONFIGURATION = "3d_fullres"


def plans(name="nnUNetPlans"):
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        "arch_kwargs": {
            "n_stages": 2, "features_per_stage": [4, 6], "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 2, "strides": [[1, 1, 1], [2, 2, 2]], "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1], "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    }  # fmt: skip
    resample = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": name, "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [16, 16, 16], "spacing": [1.0, 1.0, 1.0], "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False], "resampling_fn_data": function, "resampling_fn_data_kwargs": resample,
        "resampling_fn_seg": function, "resampling_fn_seg_kwargs": resample | {"is_seg": True},
        "resampling_fn_probabilities": function, "resampling_fn_probabilities_kwargs": resample,
        "architecture": architecture, "batch_dice": False,
    }  # fmt: skip
    intensities = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    return {
        "dataset_name": DATASET, "plans_name": name, "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [20, 24, 20], "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(intensities, 1.0)},
        "configurations": {CONFIGURATION: configuration},
    }  # fmt: skip


def planar(content):
    """The plans for slices of the same size."""
    configuration = content["configurations"][CONFIGURATION]
    arguments = configuration["architecture"]["arch_kwargs"]
    for name in ("conv_op", "norm_op"):
        arguments[name] = arguments[name].replace("3d", "2d")
    arguments |= {"kernel_sizes": [[3, 3]] * 2, "strides": [[1, 1], [2, 2]]}
    configuration |= {"patch_size": [16, 16], "spacing": [1.0, 1.0]}
    return content


def write_trained(results, trainer="nnUNetTrainer", folds=(0,), content=None, dataset_json=DATASET_JSON):
    """Write the files of a finished training below ``results``; returns the model folder.

    ``content`` are the plans, by default `plans`. With regions, there is an output for each.
    """
    content = content or plans()
    outputs = len([name for name in dataset_json["labels"] if name != "ignore"])
    outputs -= "regions_class_order" in dataset_json
    is_planar = len(content["configurations"][CONFIGURATION]["patch_size"]) == 2
    architecture = content["configurations"][CONFIGURATION]["architecture"]
    folder = results / DATASET / f"{trainer}__nnUNetPlans__{CONFIGURATION}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for fold in folds:
        torch.manual_seed(fold)
        network = get_network_from_plans(
            architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1,
            outputs,
            deep_supervision=False,
        )  # fmt: skip
        parameters = list(range(len(list(network.parameters()))))
        checkpoint = {
            "network_weights": network.state_dict(),
            "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": parameters}]},
            "grad_scaler_state": None,
            "logging": {"lrs": [0.01], "dice": [np.float64(0.5)]},
            "_best_ema": np.float32(0.5),
            "current_epoch": 1,
            "init_args": {
                "plans": content, "configuration": CONFIGURATION, "fold": fold, "dataset_json": dataset_json,
                "device": torch.device("cpu"),
            },
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": (0, 1) if is_planar else (0, 1, 2),
        }  # fmt: skip
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def change_checkpoint(folder, change, fold=0):
    """Read a fold's checkpoint, change it in place with ``change``, and write it again; returns its path."""
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def write_cases(folder, names=("case_0",)):
    """Write images and truths of a box with a core to folders ``images`` and ``truths``; returns both folders."""
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        truth = np.zeros((20, 24, 20), np.uint8)
        corner = rng.integers(2, 8, 3)
        truth[tuple(slice(c, c + 9) for c in corner)] = 1
        truth[tuple(slice(c + 2, c + 6) for c in corner)] = 2
        image = (100 * truth + 20 * rng.standard_normal(truth.shape)).astype(np.float32)
        for part, array, ending in (("images", image, "_0000"), ("truths", truth, "")):
            (folder / part).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), folder / part / f"{name}{ending}.nii.gz")
    return folder / "images", folder / "truths"
