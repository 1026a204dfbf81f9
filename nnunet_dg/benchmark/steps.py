"""Steps of a benchmark that nnU-Net has no command for: ``python -m nnunet_dg.benchmark.steps STEP ...``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_dg import formats
from nnunet_dg.benchmark.record import TrainingRecord, read_trainings
from nnunet_dg.errors import DataError, HostError, UserError
from nnunet_dg.files import read_json, write_json

KEY = "nnunet_dg"  # as in `nnunet_dg.training.plans`, whose import takes seconds


def prepare(dataset: str, plans: str, planner: str | None, configurations: Sequence[str]) -> None:
    """Plan and preprocess with nnU-Net's commands. Existing plans and complete preprocessed data are kept.

    Args:
        dataset: Full name of the dataset.
        plans: Name of the plans.
        planner: Planner that makes the plans; None if they must exist.
        configurations: Configurations to preprocess.

    Raises:
        DataError: The plans are missing and no planner is named, or the plans lack a configuration.
        HostError: A command of nnU-Net failed.
    """
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.paths import nnUNet_preprocessed

    from nnunet_dg.datasets.split_dataset import number_of

    file, number = Path(nnUNet_preprocessed, dataset, f"{plans}.json"), number_of(dataset)
    if not file.is_file():
        if planner is None:
            raise DataError(f"There are no plans {file}. Make them, or name a planner: plans: {{{plans}: PLANNER}}.")
        _run("nnUNetv2_extract_fingerprint", "-d", number, "-np", str(default_num_processes))
        _run("nnUNetv2_plan_experiment", "-d", number, "-pl", planner, "-overwrite_plans_name", plans)
    known = list(read_json(file, formats.Plans).get("configurations", {}))
    if unknown := [name for name in configurations if name not in known]:
        raise DataError(f"{file} has no configuration {unknown[0]!r}. It has {', '.join(known)}.")
    if incomplete := [name for name in configurations if not _is_preprocessed(file, name, dataset)]:
        options = ["-c", *incomplete, "-np", *([str(default_num_processes)] * len(incomplete))]
        _run("nnUNetv2_preprocess", "-d", number, "-plans_name", plans, *options)


def _is_preprocessed(plans: Path, configuration: str, dataset: str) -> bool:
    """Whether every training case is preprocessed. nnU-Net writes the properties of a case after its arrays."""
    from nnunetv2.paths import nnUNet_raw
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = plans.parent / PlansManager(str(plans)).get_configuration(configuration).data_identifier
    expected: Any = read_json(Path(nnUNet_raw, dataset, "dataset.json"), formats.Dataset)
    return len(list(folder.glob("*.pkl"))) >= int(expected.get("numTraining", 1))


def write_plans(training: TrainingRecord, own: dict[str, Any]) -> None:
    """Write the plans of a training: a copy of the plans it is derived from, with its settings, seed and length.

    Args:
        training: Training.
        own: Its section ``nnunet_dg``, which takes precedence over that of the plans it is derived from.

    Raises:
        DataError: The results folder has trainings with other plans of this name.
    """
    folder = Path(training["preprocessed"])
    plans: dict[str, Any] = dict(read_json(folder / f"{training['plans']}.json", formats.Plans))
    section = dict(plans.get(KEY, {}))
    for key, settings in own.items():
        section[key] = {**section.get(key, {}), **settings}
    content = plans | {"plans_name": training["own_plans"], KEY: section}
    path = folder / f"{training['own_plans']}.json"
    if path.is_file():
        if dict(read_json(path, formats.Plans)) == content:
            return
        if any(Path(training["results"]).glob("fold_*/checkpoint_*.pth")):
            raise DataError(
                f"{training['results']} was trained with other settings or other {training['plans']}. Give the row "
                f"{training['row']!r} another name in the plan, or move that folder away."
            )
    write_json(path, content, indent=4)


def _run(*command: str) -> None:
    print(f"$ {shlex.join(command)}", flush=True)
    workers = os.environ.get("nnUNet_n_proc_DA")  # noqa: SIM112, nnU-Net's name
    environment = os.environ | ({"nnUNet_n_proc_DA": "1"} if workers == "0" else {})  # planners need a positive number
    status = subprocess.run(command, check=False, env=environment).returncode  # noqa: S603, a command of nnU-Net
    if status:
        raise HostError(f"{command[0]} failed with exit status {status}; its output is above.")


def describe_predictions(folder: Path) -> None:
    """Copy plans and labels of adapted predictions to the folder of all folds, where a report reads them.

    Args:
        folder: Folder ``fold_K/validation`` with predictions.
    """
    for name in ("plans.json", "dataset.json"):
        write_json(folder.parent.parent / name, read_json(folder / name, dict), indent=4)


def _run_step(a: argparse.Namespace) -> None:
    if a.step == "prepare":
        prepare(a.dataset, a.plans, a.planner, a.c)
    elif a.step == "plans":
        write_plans(read_trainings(a.file)[a.training], json.loads(a.section))
    elif a.step == "cases":
        from nnunet_dg.benchmark.cases import link_cases

        link_cases(a.dataset, a.fold, a.output, a.need_both)
    elif a.step == "adapted":
        describe_predictions(a.folder)
    elif a.step == "choose":
        from nnunet_dg.benchmark.chosen import choose

        choose(_compared(a), json.loads(a.rows), a.validation_domain, a.metric, a.output)
    else:
        from nnunet_dg.benchmark.costs import write_costs

        write_costs(_compared(a), a.output, [(row, Path(folder)) for row, folder in a.adapted])


def _compared(a: argparse.Namespace) -> list[TrainingRecord]:
    return [training for training in read_trainings(a.file).values() if training["comparison"] == a.comparison]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step and return its exit status. Expected errors are the last line of the job's log."""
    parser = argparse.ArgumentParser(prog="nnunet_dg.benchmark.steps", description=__doc__)
    steps = parser.add_subparsers(required=True, dest="step")
    step = steps.add_parser("prepare")
    step.add_argument("dataset")
    step.add_argument("plans")
    step.add_argument("--planner")
    step.add_argument("-c", nargs="+", required=True)
    step = steps.add_parser("plans")
    step.add_argument("file", type=Path)
    step.add_argument("training")
    step.add_argument("section", help="JSON")
    step = steps.add_parser("cases")
    step.add_argument("dataset")
    step.add_argument("fold", type=int)
    step.add_argument("output", type=Path)
    step.add_argument("--need-both", action="store_true")
    step = steps.add_parser("adapted")
    step.add_argument("folder", type=Path)
    step = steps.add_parser("choose")
    step.add_argument("file", type=Path)
    step.add_argument("comparison")
    step.add_argument("rows", help="JSON")
    step.add_argument("output", type=Path)
    step.add_argument("--metric", required=True)
    step.add_argument("--validation-domain", required=True)
    step = steps.add_parser("costs")
    step.add_argument("file", type=Path)
    step.add_argument("comparison")
    step.add_argument("output", type=Path)
    step.add_argument("--adapted", nargs=2, action="append", default=[], metavar=("ROW", "FOLDER"))
    a = parser.parse_args(argv)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        _run_step(a)
    except UserError as error:
        print(f"nnunet-dg: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
