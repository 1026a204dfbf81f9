"""Import all modules of nnunet_dg, a trainer and a planner, and print the names of the latter two."""

import importlib
import pkgutil

import nnunet_dg

MAPPED = (  # walk_packages does not find folders that an editable installation maps
    "nnunet_dg.trainers.nnUNetTrainerDropGen_Paper",
    "nnunet_dg.planners.nnUNetPlannerDropGen",
)

for module in pkgutil.walk_packages(nnunet_dg.__path__, "nnunet_dg."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in MAPPED:
    print(importlib.import_module(name).__name__)
