"""The planner for the DropGen paper's own network, for nnUNetTrainerDropGen_Paper and nnUNetTrainerERM_Paper."""

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_dg.planning.paper import PaperPlanning


class nnUNetPlannerDropGen_Paper(PaperPlanning, ExperimentPlanner):
    """The paper's 3-D U-Net (36.9 M parameters), batches of four, whole images scaled to [0, 1] (8 GB)."""

    plans_name = "nnUNetDropGenPaperPlans"
