"""nnU-Net's planners for networks whose input is the image and its features: same memory target, same data."""

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from nnunet_dg.planning.memory import DropGenPlanning


class nnUNetPlannerDropGen(DropGenPlanning, ExperimentPlanner):
    """nnU-Net's default planner (8 GB)."""

    plans_name = "nnUNetDropGenPlans"


class nnUNetPlannerDropGenResEncM(DropGenPlanning, nnUNetPlannerResEncM):
    """Residual encoder, 8 GB."""

    plans_name = "nnUNetDropGenResEncUNetMPlans"


class nnUNetPlannerDropGenResEncL(DropGenPlanning, nnUNetPlannerResEncL):
    """Residual encoder, 24 GB."""

    plans_name = "nnUNetDropGenResEncUNetLPlans"


class nnUNetPlannerDropGenResEncXL(DropGenPlanning, nnUNetPlannerResEncXL):
    """Residual encoder, 40 GB."""

    plans_name = "nnUNetDropGenResEncUNetXLPlans"
