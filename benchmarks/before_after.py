"""Compares training steps or predictions of two versions of this package, interleaved: did a trainer become slower?

    python benchmarks/before_after.py BEFORE/.venv/bin/python BEFORE AFTER/.venv/bin/python AFTER
    python benchmarks/before_after.py BEFORE/.venv/bin/python BEFORE AFTER/.venv/bin/python AFTER --predict

BEFORE and AFTER are checkouts, each installed in its own environment. Every trainer runs in two processes, one per
version, which take turns step by step (A B A B ...), so that changes in the speed of the machine affect both. The ratio
is the median over the rounds. Steps use noise, late in the training, when every loss term has its full weight.
"""

import argparse
import os
import subprocess
import sys
from statistics import median

ROWS = {  # the trainer, and settings in the plans
    "nnUNetTrainer": ("nnUNetTrainer", {}),
    "nnUNetTrainerDropGen": ("nnUNetTrainerDropGen", {}),
    "nnUNetTrainerDropGen_MIND": ("nnUNetTrainerDropGen_MIND", {}),
    "nnUNetTrainerDropGen_Synthetic": ("nnUNetTrainerDropGen_Synthetic", {}),
    "nnUNetTrainerDropGen_Paper": ("nnUNetTrainerDropGen_Paper", {}),
    "nnUNetTrainerSgCG": ("nnUNetTrainerSgCG", {}),
    "nnUNetTrainerSgCG, contrast only": ("nnUNetTrainerSgCG", {"sgcg": {"amplitude_mixup": False}}),
    "nnUNetTrainerTinyMIG": ("nnUNetTrainerTinyMIG", {"tinymig": {"teacher": "random:anatomix"}}),
    "nnUNetTrainerTinyMIG_Paper": ("nnUNetTrainerTinyMIG_Paper", {"tinymig": {"teacher": "random:anatomix"}}),
    "nnUNetTrainerDropGenSgCG": ("nnUNetTrainerDropGenSgCG", {}),
    "nnUNetTrainerDropGenTinyMIG": ("nnUNetTrainerDropGenTinyMIG", {"tinymig": {"teacher": "random:anatomix"}}),
}
LATE = 900  # epoch


def serve(checkout: str, row: str, patch: int, batch: int, method: str) -> None:
    """Run a training step or a prediction for every line on standard input, and print its duration in seconds."""
    sys.path.insert(0, os.path.join(checkout, "benchmarks"))
    import step_cost
    import torch
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from on_noise import plans

    name, settings = ROWS[row]
    folder = os.path.join(os.path.dirname(sys.modules["nnunetv2"].__file__), "training", "nnUNetTrainer")
    trainer = recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
    device = torch.device("cpu")
    step = step_cost.Step(trainer, plans(patch, batch).plans | {"nnunet_dg": settings}, device)
    step.trainer.current_epoch = LATE
    for _ in sys.stdin:
        print("seconds", step_cost.seconds(getattr(step, method), device), flush=True)


class Version:
    """A process that runs one version of one trainer."""

    def __init__(self, python: str, checkout: str, row: str, patch: int, batch: int, method: str) -> None:
        command = [python, os.path.abspath(__file__), "--serve", checkout, row, str(patch), str(batch), method]
        environment = os.environ | {"PYTHONPATH": ""}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip

    def step(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"{' '.join(self.process.args)} ended.")

    def end(self) -> None:
        self.process.kill()


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before_python", "before", "after_python", "after"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, default=7, help="steps of each version (default: 7)")
    parser.add_argument("--patch", type=int, default=48, help="voxels a side (default: 48)")
    parser.add_argument("--batch", type=int, default=2, help="samples; 1 is what nnU-Net predicts (default: 2)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="default: all")
    parser.add_argument("--predict", action="store_true", help="forward passes of a batch instead of training steps")
    a = parser.parse_args()
    method = "predict" if a.predict else "train"
    title = "prediction" if a.predict else "training step"
    print(f"| {title} | before, s | after, s | after / before |\n| --- | --- | --- | --- |")
    for row in a.rows:
        checkouts = ((a.before_python, a.before), (a.after_python, a.after))
        versions = [Version(*checkout, row, a.patch, a.batch, method) for checkout in checkouts]
        rounds = [[version.step() for version in versions] for _ in range(a.rounds + 2)][2:]
        for version in versions:
            version.end()
        before, after = (median(times) for times in zip(*rounds, strict=True))
        ratio = median(after / before for before, after in rounds)
        print(f"| {row} | {before:.3f} | {after:.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
