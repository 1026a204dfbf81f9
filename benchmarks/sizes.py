"""Plans of nnU-Net's default network with another number of classes, image channels or features."""

from typing import Any

Content = dict[str, Any]


def sized(plans: Content, classes: int, channels: int, features: int) -> tuple[Content, Content]:
    """The content of plans on noise, and of a dataset.json, with these sizes.

    Args:
        plans: Content of plans of one channel, which is changed in place.
        classes: Number of classes, including the background.
        channels: Number of image channels.
        features: Number of features of the first stage; each next one has twice as many, up to 320.
    """
    configuration = plans["configurations"]["3d_fullres"]
    configuration["normalization_schemes"] = ["ZScoreNormalization"] * channels
    configuration["use_mask_for_norm"] = [False] * channels
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [min(features * 2**stage, 320) for stage in range(network["n_stages"])]
    dataset = {
        "channel_names": {str(i): "MRI" for i in range(channels)},
        "labels": {"background": 0} | {f"label {i}": i for i in range(1, classes)},
        "file_ending": ".nii.gz",
    }
    return plans, dataset
