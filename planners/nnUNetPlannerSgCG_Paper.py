"""The planner for the recipe of SgCG's paper, for nnUNetTrainerSgCG_Paper."""

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_dg.planning.paper_batches import SgCGPaperPlanning


class nnUNetPlannerSgCG_Paper(SgCGPaperPlanning, ExperimentPlanner):
    """nnU-Net's network, batches of eight, and images scaled to [-1, 1] (8 GB)."""

    plans_name = "nnUNetSgCGPaperPlans"
