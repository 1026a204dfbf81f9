"""Plan dataset 701 with a planner that has its own DropGen settings."""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.planners.nnUNetPlannerDropGen import nnUNetPlannerDropGen


class OwnPlanner(nnUNetPlannerDropGen):
    plans_name, dropgen = "ownPlans", DropGen(extractor="mind", p=0.25)


OwnPlanner(701).plan_experiment()
