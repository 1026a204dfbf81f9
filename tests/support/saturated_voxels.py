"""Print the fraction of voxels at the maximum of a preprocessed image: saturated_voxels.py DATASET IMAGE PLANS ..."""

import sys

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

folder, image, *names = sys.argv[1:]
for name in names:
    plans = PlansManager(f"{folder}/{name}.json")
    configuration = plans.get_configuration("3d_fullres")
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, _ = preprocessor.run_case([image], None, plans, configuration, f"{folder}/dataset.json")
    print(name, "SATURATED", (data >= data.max() - 1e-4).mean())
