"""The jobs of a benchmark: nnU-Net's commands and this package's, each with the jobs that it waits for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed

from nnunet_dg.adaptation.settings import METHODS
from nnunet_dg.benchmark.adapting import Adapted
from nnunet_dg.benchmark.cases import ALL, IN_DOMAIN, TRUTHS, UNSEEN
from nnunet_dg.benchmark.plan import Plan
from nnunet_dg.benchmark.record import chosen_results
from nnunet_dg.benchmark.trainings import Folds, Training

RULES = ("prepare", "splits", "plans", "train", "cases", "adapt", "evaluate", "choose", "stress", "costs", "report")
"""The rules of the workflow, in the order in which a benchmark needs them."""


@dataclass(frozen=True)
class Job:
    """A job of the workflow.

    Attributes:
        command: Shell command; ``$PYTHON`` is the Python to use. A second run continues or repeats the first.
        after: ``RULE/JOB`` of the jobs that have to be done before.
    """

    command: str
    after: list[str] = field(default_factory=list)


Jobs = dict[str, dict[str, Job]]


def jobs_of(plan: Plan, trainings: Sequence[Training], adapted: Sequence[Adapted], output: Path) -> Jobs:
    """All jobs, ``{rule: {name: job}}``.

    Args:
        plan: Plan.
        trainings: Its trainings.
        adapted: What it adapts.
        output: Folder of the benchmark.
    """
    jobs: Jobs = {rule: {} for rule in RULES}
    for training in trainings:
        _add_preparation(jobs, plan, training, output)
        for number in training.folds.numbers:
            _add_fold(jobs, plan, training, number)
    for one in adapted:
        for number in one.training.folds.numbers:
            _add_adaptation(jobs, plan, one, number, output)
    for name, group in groupby(trainings, lambda training: training.comparison):
        members, own = list(group), [one for one in adapted if one.training.comparison == name]
        _add_comparison(jobs, plan, name, members, own, output)
        _add_stress(jobs, plan, name, members, output)
    return jobs


def as_config(jobs: Jobs, plan: Plan, threads: int = 1, devices: Sequence[str] = ()) -> dict[str, Any]:
    """The jobs as the configuration of the workflow, in types of JSON.

    Args:
        jobs: Jobs.
        plan: Plan.
        threads: Number of threads of each job.
        devices: GPUs of the jobs that run at the same time, see `devices_of_jobs`; empty: jobs do not choose.
    """
    by_rule = {rule: {name: asdict(job) for name, job in named.items()} for rule, named in jobs.items()}
    return {"jobs": by_rule, "gpu": plan["device"] == "cuda", "threads": threads, "devices": list(devices)}


def trained_fold(training: Training, number: int) -> str:
    """Name of the job of one fold."""
    return f"{training.name}/fold_{number}"


def _add_preparation(jobs: Jobs, plan: Plan, training: Training, output: Path) -> None:
    dataset, prepared = training.folds, f"{training.folds.name}__{training.plans}"
    planner = plan["plans"][training.plans]
    step = _own("prepare", dataset.name, training.plans, *([f"--planner={planner}"] if planner else []))
    jobs["prepare"][prepared] = Job(f"{step} -c {shlex.join(plan['configurations'])}", _one_at_a_time(jobs, prepared))
    last_prepared = [f"prepare/{name}" for name in jobs["prepare"] if name.startswith(f"{dataset.name}__")]
    jobs["splits"][dataset.name] = Job(_splits(dataset), last_prepared)
    section = json.dumps(training.section)  # in the command, so that another section repeats the job
    step = _own("plans", str(output / "trainings.json"), training.name, section)
    jobs["plans"][training.name] = Job(step, [f"prepare/{prepared}"])


def _one_at_a_time(jobs: Jobs, prepared: str) -> list[str]:
    """The jobs that prepare the same dataset with other plans, which write the same files."""
    dataset = prepared.partition("__")[0]
    others = [name for name in jobs["prepare"] if name.partition("__")[0] == dataset and name != prepared]
    return jobs["prepare"][prepared].after if prepared in jobs["prepare"] else [f"prepare/{name}" for name in others]


def _splits(dataset: Folds) -> str:
    if dataset.protocol == "existing":
        return shlex.join(["test", "-f", str(Path(nnUNet_preprocessed, dataset.name, "splits_final.json"))])
    groups = [] if dataset.groups is None else ["--groups", str(dataset.groups)]
    in_domain = ["--in-domain", str(dataset.in_domain)] if dataset.in_domain else []
    options = [*groups, *in_domain, *_validation_domain(dataset)]
    return shlex.join(["nnunet-dg", "splits", dataset.protocol, "-d", dataset.name, *options, "--keep"])


def _validation_domain(dataset: Folds) -> list[str]:
    return [] if dataset.validation_domain is None else [f"--validation-domain={dataset.validation_domain}"]


def _add_fold(jobs: Jobs, plan: Plan, training: Training, number: int) -> None:
    name, dataset = trained_fold(training, number), training.folds.name
    command = ["nnUNetv2_train", dataset, training.configuration, str(number), "-p", training.own_plans]
    options = ["-tr", training.trainer, "-device", plan["device"], "--c"]
    jobs["train"][name] = Job(shlex.join([*command, *options]), [f"plans/{training.name}", f"splits/{dataset}"])
    if _is_evaluated(plan):
        predictions = training.results / f"fold_{number}" / "validation"
        jobs["evaluate"][name] = Job(_evaluate(plan, training, predictions), [f"train/{name}"])


def _is_evaluated(plan: Plan) -> bool:
    """Whether validations are evaluated. If not, the report reads the Dice that nnU-Net has computed."""
    return plan["metrics"] != ["dice"] or bool(plan["adaptation"])


def _evaluate(plan: Plan, training: Training, predictions: Path) -> str:
    """The command; with the same options for plain and adapted predictions, which may lack in-domain cases."""
    truths, skip = training.preprocessed / "gt_segmentations", ["--missing", "skip"] if plan["adaptation"] else []
    return shlex.join(["nnunet-dg", "evaluate", str(truths), str(predictions), "-np", "1", *skip])


def _add_adaptation(jobs: Jobs, plan: Plan, adapted: Adapted, number: int, output: Path) -> None:
    training, name = adapted.training, f"{adapted.name}/fold_{number}"
    fold, cases = f"{training.folds.name}/fold_{number}", output / "cases" / training.folds.name / f"fold_{number}"
    both = ["--need-both"] if any(METHODS[method].two_models for method in plan["adaptation"]) else []
    step = _own("cases", training.folds.name, str(number), str(cases), *both)
    jobs["cases"][fold] = Job(step, [f"splits/{training.folds.name}"])
    predictions, after = adapted.results(output) / f"fold_{number}" / "validation", [f"cases/{fold}"]
    command = ["nnunet-dg", "predict", "--adapt", adapted.method, "-m", str(training.results), "-f", str(number)]
    command += ["-i", str(cases / (UNSEEN if adapted.stable else ALL)), "-o", str(predictions)]
    command += ["-device", plan["device"], "--seed", str(training.seed), "--continue_prediction"]
    command += [word for key, value in adapted.settings.items() for word in (f"--{key}", str(value))]
    if adapted.stable:
        command += ["--stable", str(adapted.stable.results), "--validation-images", str(cases / IN_DOMAIN)]
        command += ["--validation-truths", str(cases / TRUTHS)]
    after += [f"train/{trained_fold(t, number)}" for t in (training, adapted.stable) if t]
    step = _own("adapted", str(predictions))
    jobs["adapt"][name] = Job(f"{shlex.join([*command, '--disable_progress_bar'])} && {step}", after)
    jobs["evaluate"][name] = Job(_evaluate(plan, training, predictions), [f"adapt/{name}"])


def _add_comparison(
    jobs: Jobs, plan: Plan, name: str, members: Sequence[Training], adapted: Sequence[Adapted], output: Path
) -> None:
    numbers = members[0].folds.numbers
    rule = "evaluate" if _is_evaluated(plan) else "train"
    done = [f"{rule}/{trained_fold(training, number)}" for training in members for number in numbers]
    costs = output / "costs" / f"{name}.csv"
    also = [f"evaluate/{one.name}/fold_{number}" for one in adapted for number in numbers]
    folders = [word for one in adapted for word in ("--adapted", one.row, str(one.results(output)))]
    step = _own("costs", str(output / "trainings.json"), name, str(costs), *folders)
    jobs["costs"][name] = Job(step, [*done, *also])
    sources = [f"{training.row}={training.results}" for training in members]
    sources += [f"{one.row}={one.results(output)}" for one in adapted]
    options = ["-o", str(output / "report" / name), "--metric", plan["metrics"][0], "--costs", str(costs)]
    options += [*_validation_domain(members[0].folds), "-f", *map(str, numbers)]
    chosen = [f"choose/{name}"] if plan["choose"] else []
    if chosen:
        jobs["choose"][name] = Job(_choose(plan, members[0], output), done)
        sources += [
            f"{row}={chosen_results(output / 'chosen', name, row, seed)}"
            for row, seed in product(plan["choose"], plan["seeds"])
        ]
        options += ["--choices", str(output / "chosen" / f"{name}.csv")]
    baseline = ["--baseline", plan["baseline"] or members[0].row]
    command = shlex.join(["nnunet-dg", "report", *sources, *options, *baseline])
    jobs["report"][name] = Job(command, [*done, *also, *chosen, f"costs/{name}"])


def _choose(plan: Plan, training: Training, output: Path) -> str:
    """The command that chooses the rows of a comparison; with the rows in it, so that others repeat the job."""
    rows, options = json.dumps(plan["choose"]), ["--metric", plan["metrics"][0], *_validation_domain(training.folds)]
    return _own("choose", str(output / "trainings.json"), training.comparison, rows, str(output / "chosen"), *options)


def _add_stress(jobs: Jobs, plan: Plan, name: str, members: Sequence[Training], output: Path) -> None:
    for seed in plan["seeds"] if plan["stress"] else ():
        same = [training for training in members if training.seed == seed]
        for number in same[0].folds.numbers:
            job = f"{name}/seed{seed}_fold_{number}"
            models = [f"{training.row}={training.results}" for training in same]
            options = ["-o", str(output / "stress" / job), "-f", str(number), "-device", plan["device"]]
            command = shlex.join(["nnunet-dg", "stress", *models, *options, "--kinds", *plan["stress"]])
            jobs["stress"][job] = Job(command, [f"train/{trained_fold(t, number)}" for t in same])


def _own(*arguments: str) -> str:
    """A step of this package, with the Python that runs Snakemake."""
    return f'"$PYTHON" -m nnunet_dg.benchmark.steps {shlex.join(arguments)}'
