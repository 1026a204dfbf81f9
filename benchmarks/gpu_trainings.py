"""Short trainings on the demo's phantom by nnU-Net's commands, on a GPU: seconds of an epoch, and Dice.

    python benchmarks/gpu_trainings.py
    python benchmarks/gpu_trainings.py --rehearse     # a few steps, on the CPU if there is no GPU

nnUNetTrainer (as nnUNetTrainerERM, which takes a seed), nnUNetTrainerDropGen_MIND and nnUNetTrainerDropGen train at
the same time, with small plans and without torch.compile. DropGen's anatomix has random weights. Where there are two
GPUs, DropGen_MIND trains once more on both. The cases are those that the training validates, which are in-domain. The
exit status is 1 where a training failed.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from statistics import median

import aside

# isort: split
import torch
from plain_anatomix import random_weights

from nnunet_dg.demo.phantom import write_dataset
from nnunet_dg.demo.run import DATASET, PLANS, write_small_plans, write_splits
from nnunet_dg.files import last_line

TRAINERS = ("nnUNetTrainerERM", "nnUNetTrainerDropGen_MIND", "nnUNetTrainerDropGen")


def start(command: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    program, *arguments = shlex.split(command)
    called = [Path(sysconfig.get_path("scripts"), program), *arguments]
    with log.open("wb") as file:
        return subprocess.Popen(called, stdout=file, stderr=subprocess.STDOUT, env=os.environ | environment)


def run(command: str, log: Path) -> None:
    if start(command, log).wait():
        sys.exit(f"{command} failed:\n{log.read_text()}")


def prepare(folder: Path, training: dict[str, int]) -> None:
    """The phantom, its plans and splits, and random weights for anatomix."""
    raw, preprocessed = (Path(os.environ[name], DATASET) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    write_dataset(raw, num_training=5, num_test=1)
    processes = min(8, os.cpu_count() or 1)
    run(f"nnUNetv2_plan_and_preprocess -d 999 -c 3d_fullres -np {processes} -npfp {processes}", folder / "plan.log")
    write_small_plans(preprocessed, training)
    write_splits(preprocessed, raw)
    torch.save(random_weights(), folder / "random.pth")
    run(f"nnunet-dg weights install anatomix {folder / 'random.pth'} --unpublished", folder / "weights.log")


class Training:
    """A training that runs, with results in a folder of its own."""

    def __init__(self, folder: Path, trainer: str, options: str) -> None:
        self.name = f"`{trainer}`{options}"
        self.results = folder / f"results of {trainer}{options}"
        self.log = folder / f"{trainer}{options}.log"
        command = f"nnUNetv2_train 999 3d_fullres 0 -p {PLANS} -tr {trainer}{options}"
        self.process = start(command, self.log, nnUNet_results=str(self.results))
        self.failed = False

    def row(self) -> str:
        """A line of the table, once the training has ended."""
        self.process.wait()
        epochs = [float(seconds) for seconds in re.findall(r"Epoch time: ([\d.]+) s", self.log.read_text())]
        summaries = list(self.results.rglob("summary.json"))
        self.failed = bool(self.process.returncode) or not (epochs and summaries)
        if self.failed:
            return f"| {self.name} | failed: {last_line(self.log)} |"
        dice = json.loads(summaries[0].read_text())["foreground_mean"]["Dice"]
        return f"| {self.name} | {epochs[0]:.1f} | {median(epochs[1:] or epochs):.1f} | {100 * dice:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="a few steps; on the CPU without a GPU")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.rehearse):
        sys.exit("There is no GPU.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    epochs, steps = (1, 3) if arguments.rehearse else (2, 100)
    folder = Path(aside.folder.name)
    os.environ |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    os.environ["NNUNET_DG_HOME"] = str(folder / "home")
    prepare(folder, {"seed": 0, "epochs": epochs, "steps": steps})
    print(f"{epochs} epochs of {steps} steps on {device}\n\n| trainer | first epoch, s | epoch, s | Dice |")
    print("| --- | --- | --- | --- |", flush=True)
    groups = [[(trainer, f" -device {device}") for trainer in TRAINERS]]
    if torch.cuda.device_count() > 1:
        groups.append([("nnUNetTrainerDropGen_MIND", f" -device {device} -num_gpus 2")])
    failed = False
    for group in groups:
        for training in [Training(folder, *started) for started in group]:
            print(training.row(), flush=True)
            failed |= training.failed
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
