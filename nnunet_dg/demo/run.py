"""Running the demo: nnU-Net's own commands on the phantom, once per trainer, and a report on the results."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_dg.demo.phantom import LABELS, write_dataset
from nnunet_dg.errors import HostError
from nnunet_dg.extras import require
from nnunet_dg.files import last_line, locked, read_json, replacing, write_json
from nnunet_dg.formats import DemoPlans
from nnunet_dg.names import printable
from nnunet_dg.threads import WAITING

DATASET = "Dataset999_DropGenDemo"
PLANS = "nnUNetDemoPlans"
TRAINERS = ("nnUNetTrainerERM", "nnUNetTrainerDropGen_MIND")  # the first one is nnUNetTrainer with a seed
TRAINING = {"seed": 0, "epochs": 5, "steps": 540}
PATCH_SIZE = [16, 24, 16]
DROPGEN = {"p": 0.25, "p_end": 0.0}  # in so few steps, the default p of 0.5 costs more in-domain
DOMAINS = {"source": "in-domain", "target": "unseen"}

GUARD = Path(__file__).with_name("guard.py")

Scores = dict[str, dict[str, float]]


class DemoError(HostError):
    """A command of the demo failed."""


def run_demo(folder: Path, device: str = "cpu") -> Scores:
    """Run the demo in ``folder``. Finished steps of an earlier run in the same folder are not repeated.

    Args:
        folder: Folder for all files of the demo.
        device: Device for nnU-Net's commands: ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Returns:
        Mean foreground Dice in [0, 1], by trainer, in-domain and unseen.

    Raises:
        DemoError: A command failed; the message names its log.
        ExtraError: The extra "report" is not installed.
        DataError: Another demo runs in the folder, or a file in it is damaged.
        OSError: The folder cannot be written to.
    """
    require("report", "The demo")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "nnunet-dg demo"):
        return _run_demo(folder, device)


def _run_demo(folder: Path, device: str) -> Scores:
    start = time.monotonic()
    console = Console()
    raw = folder / "nnUNet_raw" / DATASET
    if not (raw / "dataset.json").is_file():
        console.print(f"Writing a two-domain phantom dataset to {raw}", markup=False, soft_wrap=True)
        write_dataset(raw)
    nnunet = _NNUNet(folder, console)
    nnunet("plan", "nnUNetv2_plan_and_preprocess -d 999 -c 3d_fullres -np 2 -npfp 2")
    write_small_plans(folder / "nnUNet_preprocessed" / DATASET)
    write_splits(folder / "nnUNet_preprocessed" / DATASET, raw)
    for trainer in TRAINERS:
        nnunet(f"train_{trainer}", _train(folder, trainer, device))
    for trainer in TRAINERS:
        folders = f"-i {shlex.quote(str(raw / 'imagesTs'))} -o {shlex.quote(str(folder / 'predictions' / trainer))}"
        model = f"-d 999 -c 3d_fullres -f 0 -p {PLANS} -tr {trainer}"
        options = f"-device {device} -npp 1 -nps 1 --disable_tta"
        nnunet(f"predict_{trainer}", f"nnUNetv2_predict {folders} {model} {options}")
    _report(folder, raw, nnunet)
    scores = read_scores(folder / "report" / "domains.csv")
    with replacing(folder / "demo.png") as partial:
        figure(folder, raw)[0].savefig(partial, dpi=150, bbox_inches="tight", format="png")
    console.print(table(scores))
    console.print(f"Images, truths and predictions: {folder / 'demo.png'}", markup=False, soft_wrap=True)
    console.print(f"Full report: {folder / 'report' / 'report.html'}", markup=False, soft_wrap=True)
    console.print(f"Took {(time.monotonic() - start) / 60:.1f} minutes.")
    return scores


class _NNUNet:
    """Runs commands in the demo's own nnU-Net folders, with a log per step. Finished steps are not repeated."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.console = console
        names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        self.environment = (
            {**WAITING, "OMP_NUM_THREADS": "1"}  # small patches need no more, and worker processes need the other cores
            | os.environ
            | {name: str(folder / name) for name in names}
            | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2"}
        )

    def __call__(self, step: str, command: str) -> None:
        log, done = self.logs / f"{step}.log", self.logs / f"{step}.done"
        self.console.print(f"$ {command}" + ("  (done before)" if done.exists() else ""), markup=False, soft_wrap=True)
        if done.exists():
            return
        program, *arguments = shlex.split(command)
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        found = shutil.which(program, path=path)
        if found is None:
            raise DemoError(f"{program} is neither in {sysconfig.get_path('scripts')} nor on PATH. Install nnU-Net.")
        start = time.monotonic()
        with log.open("ab") as output, self.console.status("") as status:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", str(GUARD), found, *arguments],
                env=self.environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            with process:  # on exit, closes the pipe to the guard, which ends the command, and waits for both
                while process.poll() is None:
                    progress = f"{time.monotonic() - start:4.0f} s  {_progress(log)}"
                    status.update(escape(printable(progress)[: self.console.width - 4]))
                    time.sleep(1)
        if process.returncode:
            raise DemoError(
                f"{program} failed with exit status {process.returncode}; its output is in {log}:\n{last_line(log)}"
            )
        done.touch()


def _train(folder: Path, trainer: str, device: str) -> str:
    """nnU-Net's training command. It resumes if an interrupted training has left a checkpoint."""
    results = folder / "nnUNet_results" / DATASET / f"{trainer}__{PLANS}__3d_fullres" / "fold_0"
    resume = " --c" if any(results.glob("checkpoint_*.pth")) else ""
    return f"nnUNetv2_train 999 3d_fullres 0 -p {PLANS} -tr {trainer} -device {device}{resume}"


def _progress(log: Path) -> str:
    """The last line of a log, preceded by the current epoch."""
    epochs = re.findall(r": (Epoch \d+) *$", log.read_text(encoding="utf-8", errors="replace"), re.M)
    return "  ".join([*epochs[-1:], last_line(log)])


def write_small_plans(preprocessed: Path, training: Mapping[str, int] = TRAINING) -> None:
    """Write a copy of nnU-Net's plans with settings of a training and `DROPGEN`, small enough for two CPU cores."""
    advice = "Remove the demo's folder, and run the demo again."
    plans: dict[str, Any] = dict(read_json(preprocessed / "nnUNetPlans.json", DemoPlans, advice))
    configuration = plans["configurations"]["3d_fullres"]
    configuration["batch_size"] = 2
    configuration["patch_size"] = PATCH_SIZE
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [16 * 2**stage for stage in range(network["n_stages"])]
    small = {"plans_name": PLANS, "nnunet_dg": {"training": dict(training), "dropgen": DROPGEN}}
    write_json(preprocessed / f"{PLANS}.json", plans | small)


def write_splits(preprocessed: Path, raw: Path) -> None:
    """Write the splits: one fold, which validates a single case, since the test cases are what counts."""
    *training, last = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir())
    write_json(preprocessed / "splits_final.json", [{"train": training, "val": [last]}], indent=4)


def _report(folder: Path, raw: Path, nnunet: _NNUNet) -> None:
    """Evaluate the predictions and write the report, with the commands that users run."""
    predictions = {trainer: folder / "predictions" / trainer for trainer in TRAINERS}
    for trainer, predicted in predictions.items():
        nnunet(
            f"evaluate_{trainer}",
            shlex.join(["nnunet-dg", "evaluate", str(raw / "labelsTs"), str(predicted), "-np", "1"]),
        )
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTs").iterdir())
    domains = folder / "domains_of_test_cases.json"
    write_json(domains, {case: case.split("_")[0] for case in cases})
    named = [f"{trainer}={predicted}" for trainer, predicted in predictions.items()]
    options = ["--baseline", TRAINERS[0], "--domains", str(domains), "--trained-on", "source"]
    nnunet("report", shlex.join(["nnunet-dg", "report", *named, "-o", str(folder / "report"), *options]))


def read_scores(domains: Path) -> Scores:
    """Mean Dice of each trainer, in-domain and unseen, from the report's ``domains.csv``."""
    with domains.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["domain"], row["metric"]) == ("", "dice")]
    return {t: {row["setting"]: float(row["mean"]) for row in rows if row["trainer"] == t} for t in TRAINERS}


def table(scores: Scores) -> Table:
    """Dice in percent, one row per trainer, one column per domain."""
    title = "nnunet-dg demo, " + ", ".join(f"{name} = {value}" for name, value in DROPGEN.items())
    result = Table("trainer", *(f"Dice, {setting}" for setting in DOMAINS.values()), title=title)
    for trainer, dice in scores.items():
        result.add_row(trainer, *(f"{100 * dice[setting]:.1f}" for setting in DOMAINS.values()))
    return result


def figure(folder: Path, raw: Path) -> tuple[Figure, NDArray[Any]]:
    """One case in both domains (rows): the image, the truth, and each trainer's prediction."""
    case = sorted((raw / "labelsTs").glob("target_*.nii.gz"))[0].name
    truth = _read(raw / "labelsTs" / case)
    middle = int((truth == LABELS["lesion"]).sum((1, 2)).argmax())
    columns = ("image", "truth", *TRAINERS)
    result = Figure(figsize=(3 * len(columns), 6), layout="constrained")
    grid = result.subplots(2, len(columns))
    for row, (axes, (domain, name)) in enumerate(zip(grid, DOMAINS.items(), strict=True)):
        file = case.replace("target", domain)
        image = _read(raw / "imagesTs" / file.replace(".nii.gz", "_0000.nii.gz"))[middle]
        masks = [None, truth, *(_read(folder / "predictions" / t / file) for t in TRAINERS)]
        for ax, title, mask in zip(axes, columns, masks, strict=True):
            ax.imshow(image, cmap="gray")
            for label, color in ((LABELS["organ"], "#E69F00"), (LABELS["lesion"], "#56B4E9")):
                if mask is not None and (mask[middle] >= label).any():
                    ax.contour(mask[middle] >= label, levels=[0.5], colors=color, linewidths=2)
            ax.set(xticks=[], yticks=[], title="" if row else title)
        axes[0].set_ylabel(name)
    return result, grid


def _read(path: Path) -> NDArray[Any]:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


if __name__ == "__main__":
    run_demo(Path(sys.argv[1]))
