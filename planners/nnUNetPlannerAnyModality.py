"""Planners whose plans fit CT and MR: `AnyModalityNormalization` normalizes each image by its own statistics.

nnU-Net clips and scales CT by statistics of the training images, which saturates MR images. Prediction with these plans
needs this package.
"""

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from nnunet_dg.planners.nnUNetPlannerDropGen import (
    nnUNetPlannerDropGen,
    nnUNetPlannerDropGenResEncL,
    nnUNetPlannerDropGenResEncM,
    nnUNetPlannerDropGenResEncXL,
)
from nnunet_dg.planning.memory import Planning


class nnUNetPlannerAnyModality(Planning, ExperimentPlanner):
    """nnU-Net's default planner (8 GB), for nnUNetTrainer, SgCG and TinyMIG."""

    plans_name = "nnUNetAnyModalityPlans"
    any_modality = True


class nnUNetPlannerAnyModalityResEncM(Planning, nnUNetPlannerResEncM):
    """Residual encoder, 8 GB."""

    plans_name = "nnUNetAnyModalityResEncUNetMPlans"
    any_modality = True


class nnUNetPlannerAnyModalityResEncL(Planning, nnUNetPlannerResEncL):
    """Residual encoder, 24 GB."""

    plans_name = "nnUNetAnyModalityResEncUNetLPlans"
    any_modality = True


class nnUNetPlannerAnyModalityResEncXL(Planning, nnUNetPlannerResEncXL):
    """Residual encoder, 40 GB."""

    plans_name = "nnUNetAnyModalityResEncUNetXLPlans"
    any_modality = True


class nnUNetPlannerDropGenAnyModality(nnUNetPlannerDropGen):
    """For DropGen: nnU-Net's default planner (8 GB)."""

    plans_name = "nnUNetDropGenAnyModalityPlans"
    any_modality = True


class nnUNetPlannerDropGenAnyModalityResEncM(nnUNetPlannerDropGenResEncM):
    """For DropGen: residual encoder, 8 GB."""

    plans_name = "nnUNetDropGenAnyModalityResEncUNetMPlans"
    any_modality = True


class nnUNetPlannerDropGenAnyModalityResEncL(nnUNetPlannerDropGenResEncL):
    """For DropGen: residual encoder, 24 GB."""

    plans_name = "nnUNetDropGenAnyModalityResEncUNetLPlans"
    any_modality = True


class nnUNetPlannerDropGenAnyModalityResEncXL(nnUNetPlannerDropGenResEncXL):
    """For DropGen: residual encoder, 40 GB."""

    plans_name = "nnUNetDropGenAnyModalityResEncUNetXLPlans"
    any_modality = True
