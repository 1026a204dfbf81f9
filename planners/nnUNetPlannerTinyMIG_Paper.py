"""The planner for the network of TinyMIG's paper, for nnUNetTrainerTinyMIG_Paper."""

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_dg.planning.paper_batches import TinyMIGPaperPlanning


class nnUNetPlannerTinyMIG_Paper(TinyMIGPaperPlanning, ExperimentPlanner):
    """A U-Net like ResNet-34 (22.5 M parameters) and batches of eight, in 2-D (8 GB)."""

    plans_name = "nnUNetTinyMIGPaperPlans"
