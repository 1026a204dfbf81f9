"""Plans and trainers for training steps on noise, without a dataset.

Writes to the folders nnUNet_preprocessed and nnUNet_results.
"""

import copy
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
CASES = ("case_0", "case_1")


def plans(patch: int, batch: int = 2) -> PlansManager:
    """The parts of nnU-Net's default plans that matter for the network, for an isotropic cubic patch."""
    stages = int(np.log2(patch / 4)) + 1
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(32 * 2**i, 320) for i in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "benchmark_3d_fullres",
        "batch_dice": False,
        "patch_size": [patch] * 3,
        "spacing": [1.0] * 3,
        "batch_size": batch,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
    }
    names = {"dataset_name": "Dataset999_Benchmark", "plans_name": "benchmarkPlans"}
    return PlansManager(names | {"configurations": {"3d_fullres": configuration}})


def initialized(
    trainer: type[nnUNetTrainer],
    plans: dict[str, Any],
    device: torch.device,
    configuration: str = "3d_fullres",
    dataset: dict[str, Any] = DATASET,
) -> nnUNetTrainer:
    """A trainer for `CASES` with network, optimizer and loss. Its output is suppressed."""
    plans = copy.deepcopy(plans) | {"continue_training": False}
    with redirect_stdout(io.StringIO()):
        instance = trainer(plans, configuration, 0, dataset, device)
        folder = Path(instance.preprocessed_dataset_folder)
        folder.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            (folder / f"{case}.b2nd").touch()
        instance.initialize()
    return instance


def batch(trainer: nnUNetTrainer) -> dict[str, Any]:
    """A batch in the format of nnU-Net's data loaders: noise, and random labels at every scale of deep supervision."""
    configuration = trainer.configuration_manager
    patch, size = configuration.patch_size, configuration.batch_size
    scales = trainer._get_deep_supervision_scales()  # None: without deep supervision
    sizes = [[round(n * s) for n, s in zip(patch, scale, strict=True)] for scale in scales or [[1.0] * len(patch)]]
    classes = len(trainer.dataset_json["labels"])
    targets = [torch.randint(0, classes, (size, 1, *shape)) for shape in sizes]
    return {
        "data": torch.randn(size, len(configuration.normalization_schemes), *patch),
        "target": targets if scales else targets[0],
        "keys": [np.str_(CASES[i % len(CASES)]) for i in range(size)],  # as from nnU-Net's data loader
    }
