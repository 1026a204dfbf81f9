"""Does DropGen stay within what nnU-Net planned? Peak memory of a training step: plain plans against DropGen's.

    nnUNetv2_plan_experiment -d 501
    nnUNetv2_plan_experiment -d 501 -pl nnUNetPlannerDropGen
    python benchmarks/planned_memory.py $nnUNet_preprocessed/Dataset501_NAME

Each in a process of its own: PyTorch's allocations on CUDA, under autocast as nnU-Net trains; on CPU the resident set,
in single precision and so more than the planner's target. The first row is nnUNetTrainer on nnU-Net's own plans.
"""

import argparse
from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen, nnUNetTrainerDropGen_MIND
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from step_cost import peak_memory_in_a_fresh_process

TRAINERS = {trainer.__name__: trainer for trainer in (nnUNetTrainerDropGen, nnUNetTrainerDropGen_MIND)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the preprocessed dataset, which holds the plans")
    parser.add_argument("--plain", default="nnUNetPlans")
    parser.add_argument("--dropgen", default="nnUNetDropGenPlans")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--trainer", choices=TRAINERS, default="nnUNetTrainerDropGen", help="in 2-D: ..._MIND")
    arguments = parser.parse_args()
    rows = (
        (nnUNetTrainer, arguments.plain),
        (TRAINERS[arguments.trainer], arguments.plain),
        (TRAINERS[arguments.trainer], arguments.dropgen),
    )
    print(f"| trainer | plans | patch | batch | peak memory on {arguments.device}, GiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    base = None
    for trainer, name in rows:
        plans = load_json(str(arguments.folder / f"{name}.json"))
        configuration = PlansManager(plans).get_configuration(arguments.configuration)
        device = torch.device(arguments.device)
        peak = peak_memory_in_a_fresh_process(trainer, plans, device, arguments.configuration)
        base = base or peak
        patch = "x".join(map(str, configuration.patch_size))
        row = (trainer.__name__, name, patch, configuration.batch_size, f"{peak:.2f}", f"{peak / base:.2f}")
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
