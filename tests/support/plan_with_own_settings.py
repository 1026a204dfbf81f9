"""Plan dataset 701 with a planner that has DropGen settings of its own."""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.planners.nnUNetPlannerDropGen import nnUNetPlannerDropGen


class Mine(nnUNetPlannerDropGen):
    plans_name, dropgen = "minePlans", DropGen(extractor="mind", p=0.25)


Mine(701).plan_experiment()
