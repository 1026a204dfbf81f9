"""Compares the peak memory of training steps with nnU-Net's plans and with DropGen's plans.

    nnUNetv2_plan_experiment -d 501
    nnUNetv2_plan_experiment -d 501 -pl nnUNetPlannerDropGen
    python benchmarks/planned_memory.py $nnUNet_preprocessed/Dataset501_NAME

On CUDA, it measures PyTorch's allocations in a separate process, under autocast as in nnU-Net's training. Without CUDA,
it counts the bytes of live tensors without computing them (see live_memory.py), so plans for any card can be compared
on any machine. The first row is nnUNetTrainer with nnU-Net's own plans.
"""

import argparse
from pathlib import Path

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from live_memory import peak_live_memory
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from step_cost import Step, peak_memory_in_a_fresh_process

from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen, nnUNetTrainerDropGen_MIND

TRAINERS = {trainer.__name__: trainer for trainer in (nnUNetTrainerDropGen, nnUNetTrainerDropGen_MIND)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="preprocessed dataset folder, which contains the plans")
    parser.add_argument("--plain", default="nnUNetPlans")
    parser.add_argument("--dropgen", default="nnUNetDropGenPlans")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument(
        "--how", choices=("cuda", "counted"), default="cuda" if torch.cuda.is_available() else "counted"
    )
    parser.add_argument("--trainer", choices=TRAINERS, default="nnUNetTrainerDropGen", help="in 2-D: ..._MIND")
    arguments = parser.parse_args()
    rows = (
        (nnUNetTrainer, arguments.plain),
        (TRAINERS[arguments.trainer], arguments.plain),
        (TRAINERS[arguments.trainer], arguments.dropgen),
    )
    dataset = load_json(str(arguments.folder / "dataset.json"))
    print(f"| trainer | plans | patch | batch | peak memory ({arguments.how}), GiB | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    base = None
    for trainer, name in rows:
        plans = load_json(str(arguments.folder / f"{name}.json"))
        configuration = PlansManager(plans).get_configuration(arguments.configuration)
        if arguments.how == "cuda":
            device = torch.device("cuda")
            peak = peak_memory_in_a_fresh_process(trainer, plans, device, arguments.configuration, dataset)
        else:
            step = Step(
                trainer, plans, torch.device("cpu"), configuration_name=arguments.configuration, dataset=dataset
            )
            peak = peak_live_memory(step.trainer, step.batch)
        base = base or peak
        patch = "x".join(map(str, configuration.patch_size))
        row = (trainer.__name__, name, patch, configuration.batch_size, f"{peak:.2f}", f"{peak / base:.2f}")
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
