"""Planning as in the papers of TinyMIG and SgCG: batches of eight, TinyMIG's network, and normalization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet

from nnunet_dg.datasets.normalization import SymmetricRangeNormalization, UnitRangeNormalization
from nnunet_dg.planning.memory import Planning

BATCH_SIZE = 8
REFERENCE_BATCHES = ("UNet_reference_val_corresp_bs_2d", "UNet_reference_val_corresp_bs_3d")  # attributes of planners
SMALLEST_BATCH = 2  # of nnU-Net's planners, which shrink the patch until this number of samples fits
STAGES = 5
MULTIPLE = 2 ** (STAGES - 1)  # of which patch sizes are multiples
ARCHITECTURE: dict[str, Any] = {  # as in nnU-Net's plans, in 2-D
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {
        "n_stages": STAGES,
        "features_per_stage": [64, 64, 128, 256, 512],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * STAGES,
        "strides": [[1, 1], *[[2, 2]] * (STAGES - 1)],
        "n_blocks_per_stage": [1, 3, 4, 5, 3],
        "n_conv_per_stage_decoder": [1] * (STAGES - 1),
        "conv_bias": False,
        "norm_op": "torch.nn.modules.batchnorm.BatchNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.ReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


@contextmanager
def replaced(planner: Any, values: dict[str, Any]) -> Iterator[None]:
    """Inside this context, attributes of a planner have other values."""
    before = {name: getattr(planner, name) for name in values}
    vars(planner).update(values)
    try:
        yield
    finally:
        vars(planner).update(before)


class BatchOfEightPlanning(Planning):
    """Mixin for nnU-Net's planners: batches of eight samples, and the patch that then fits the memory target."""

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's plans, with the batch size and a patch for it."""
        smaller = {name: getattr(self, name) * SMALLEST_BATCH / BATCH_SIZE for name in REFERENCE_BATCHES}
        with replaced(self, smaller):
            plan = super().get_plans_for_configuration(*args, **kwargs)
        return plan | {"batch_size": BATCH_SIZE}


class SgCGPaperPlanning(BatchOfEightPlanning):
    """Mixin for nnU-Net's planners. List it before the planner among the base classes.

    Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
    https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization, section 4.1: batches of eight, and
    images scaled to [-1, 1]. The network is nnU-Net's, since the paper only says that it is a U-Net.
    """

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """`SymmetricRangeNormalization` for all channels, without masks."""
        schemes, masks = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return [SymmetricRangeNormalization.__name__] * len(schemes), [False] * len(masks)


class TinyMIGPaperPlanning(BatchOfEightPlanning):
    """Mixin for nnU-Net's planners. List it before the planner among the base classes.

    C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision
    Foundation Models to Single-Domain Medical Imaging, ICML 2025, https://proceedings.mlr.press/v267, appendix B.2.
    Two-dimensional configurations get a U-Net of nnU-Net's blocks whose encoder has the widths of ResNet-34, batch norm
    and ReLU. The paper gives 22.52 M parameters, but not the decoder. Here the encoder has one block less at its fourth
    level, so that there are 22.5 M with nnU-Net's decoder. Patches are multiples of 16 pixels. Three-dimensional
    configurations keep nnU-Net's network and batch size. Images are scaled to [0, 1], as in the fundus experiments; the
    paper does not say it of prostate. This scaling needs this package in preprocessing and prediction.
    """

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """`UnitRangeNormalization` for all channels, without masks."""
        schemes, masks = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return [UnitRangeNormalization.__name__] * len(schemes), [False] * len(masks)

    def get_plans_for_configuration(self, spacing: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's plans, in 2-D with the paper's network and batch size."""
        if len(spacing) != 2:
            return super(BatchOfEightPlanning, self).get_plans_for_configuration(spacing, *args, **kwargs)
        widths = ARCHITECTURE["arch_kwargs"]["features_per_stage"]
        similar = {"UNet_class": PlainConvUNet, "UNet_base_num_features": widths[0], "UNet_max_features_2d": widths[-1]}
        with replaced(self, similar):
            plan = super().get_plans_for_configuration(spacing, *args, **kwargs)
        plan["patch_size"] = [max(2 * MULTIPLE, n // MULTIPLE * MULTIPLE) for n in plan["patch_size"]]
        return plan | {"architecture": deepcopy(ARCHITECTURE)}
