"""Planning as in the DropGen paper: its network, batch size, patches and normalization."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet

from nnunet_dg.datasets.normalization import UnitRangeNormalization
from nnunet_dg.dropgen.paper_network import ARCHITECTURE, MULTIPLE, WIDTH
from nnunet_dg.planning.memory import DropGenPlanning

BATCH_SIZE = 4
SMALLEST_PATCH = 2 * MULTIPLE  # voxels along an axis; the smallest in the paper


class PaperPlanning(DropGenPlanning):
    """Mixin for nnU-Net's planners. List it before the planner among the base classes.

    S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and
    How to Fix It, 2026, https://arxiv.org/abs/2604.02564, appendix C. Three-dimensional configurations get the paper's
    network and batches of four. nnU-Net chooses the spacing, and the patch that fits the memory target with this batch;
    it is then rounded to multiples of 32 voxels, at least 64. Two-dimensional ones keep nnU-Net's network.
    """

    def get_plans_for_configuration(self, spacing: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's plans, in 3-D with the paper's network and batch size."""
        if len(spacing) != 3:
            return super().get_plans_for_configuration(spacing, *args, **kwargs)
        paper: dict[str, Any] = {
            "UNet_class": PlainConvUNet,
            "UNet_base_num_features": WIDTH,
            "UNet_max_features_3d": WIDTH * MULTIPLE,
            # nnU-Net shrinks the patch until twice this number of samples needs the memory that its reference has
            "UNet_reference_val_corresp_bs_3d": 2 * 2 / BATCH_SIZE,
        }
        default = {name: vars(self)[name] for name in paper}
        vars(self).update(paper)
        try:
            plan = super().get_plans_for_configuration(spacing, *args, **kwargs)
        finally:
            vars(self).update(default)
        plan["patch_size"] = [max(SMALLEST_PATCH, n // MULTIPLE * MULTIPLE) for n in plan["patch_size"]]
        return plan | {"batch_size": BATCH_SIZE, "architecture": deepcopy(ARCHITECTURE)}

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """`UnitRangeNormalization` for all channels, without masks."""
        schemes, masks = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return [UnitRangeNormalization.__name__] * len(schemes), [False] * len(masks)

    def sections(self, kept: dict[str, Any]) -> dict[str, Any]:
        """The assumed settings, and no further scaling of images, which are scaled whole."""
        sections = super().sections(kept)
        return sections | {"dropgen": {"image_scaling": "none"} | sections.get("dropgen", {})}
