"""Import every module of nnunet_dg, with a trainer and a planner, and print the names of those two."""

import importlib
import pkgutil

import nnunet_dg

MAPPED = (  # folders that an editable installation maps are not walked
    "nnunet_dg.trainers.nnUNetTrainerDropGen_Paper",
    "nnunet_dg.planners.nnUNetPlannerDropGen",
)

for module in pkgutil.walk_packages(nnunet_dg.__path__, "nnunet_dg."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in MAPPED:
    print(importlib.import_module(name).__name__)
