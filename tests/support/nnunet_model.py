"""A small model folder of nnU-Net with random weights."""

import json

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet


def write_model(
    folder, dims=3, network=PlainConvUNet, input_channels=1, fold="fold_0", checkpoint="checkpoint_final.pth",
    norm="InstanceNorm", features=(6, 8, 10),
):  # fmt: skip
    """Write a model folder in the format of nnUNetv2_train; returns its network."""
    torch.manual_seed(0)
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]] if dims == 3 else [[1, 1], [2, 2], [2, 2]]
    blocks = "n_conv_per_stage" if network is PlainConvUNet else "n_blocks_per_stage"
    arguments = {
        "n_stages": 3, "features_per_stage": list(features), "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * 3, "strides": strides, blocks: [1, 1, 1], "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True, "norm_op": f"torch.nn.{norm}{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{network.__name__}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    own = {
        "conv_op": getattr(torch.nn, f"Conv{dims}d"), "norm_op": getattr(torch.nn, f"{norm}{dims}d"),
        "nonlin": torch.nn.LeakyReLU, "num_classes": 3, "input_channels": input_channels, "deep_supervision": False,
    }  # fmt: skip
    model = network(**arguments | own).eval()
    name = "2d" if dims == 2 else "3d_fullres"
    configurations = {name: {"architecture": architecture}, "inherited": {"inherits_from": name}}
    (folder / fold).mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps({"configurations": configurations}))
    content = {
        "network_weights": model.state_dict(),
        "init_args": {"configuration": "inherited", "device": torch.device("cuda")},
        "logging": {"train_losses": [np.float64(0.5)], "dice": [[np.float32(0.25)]], "lrs": [0.01]},
        "_best_ema": np.float32(0.5),
    }
    torch.save(content, folder / fold / checkpoint)
    return model
