"""Print what nnUNetPlannerDropGenResEncL makes of nnU-Net's options, and of a volume that is one voxel thick."""

from nnunet_dg.planners.nnUNetPlannerDropGen import nnUNetPlannerDropGenResEncL as Planner

print("TARGETS", Planner(701).UNet_vram_target_GB, Planner(701, 3).UNet_vram_target_GB)
print("PREPROCESSOR", Planner(701, preprocessor_name="Mine").preprocessor_name)
thin = ((5.0, 1.0, 1.0), (1, 64, 64), "x", 1e9, {})
print("PATCH", Planner(701).get_plans_for_configuration(*thin)["patch_size"])
