"""Print the options of nnUNetPlannerDropGenResEncL, and the patch that it plans for a volume with a single slice."""

from nnunet_dg.planners.nnUNetPlannerDropGen import nnUNetPlannerDropGenResEncL as Planner

print("TARGETS", Planner(701).UNet_vram_target_GB, Planner(701, 3).UNet_vram_target_GB)
print("PREPROCESSOR", Planner(701, preprocessor_name="OwnPreprocessor").preprocessor_name)
thin = ((5.0, 1.0, 1.0), (1, 64, 64), "x", 1e9, {})
print("PATCH", Planner(701).get_plans_for_configuration(*thin)["patch_size"])
