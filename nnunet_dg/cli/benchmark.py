"""``nnunet-dg benchmark``: many trainings as one plan."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_dg.cli.arguments import Commands, in_options, positive
from nnunet_dg.errors import SettingsError


def add_benchmark(commands: Commands) -> None:
    """Add ``nnunet-dg benchmark``."""
    benchmark = commands.add_parser(
        "benchmark",
        help="train, predict and compare all trainers, seeds and domains of a plan",
        description="Runs the jobs of a plan with Snakemake: nnU-Net's own commands and those of nnunet-dg. The same "
        "command resumes after an interruption. Prints how many jobs wait, are done and have failed, and writes a "
        "report per dataset, configuration and plans.",
    )
    benchmark.add_argument("plan", metavar="PLAN", type=Path, help="YAML file that describes the comparison")
    benchmark.add_argument(
        "-o",
        metavar="OUT",
        type=Path,
        help="folder for logs and reports (default: PLAN without .yaml)",
    )
    benchmark.add_argument(
        "-j", "--jobs", metavar="N", type=positive, default=1,
        help="number of jobs that run at the same time (default: %(default)s)",
    )  # fmt: skip
    benchmark.add_argument(
        "--gpus", metavar="N", type=positive, default=1,
        help="number of jobs with a GPU that run at the same time, on one machine each on a GPU of its own if there "
        "are as many (default: %(default)s)",
    )  # fmt: skip
    benchmark.add_argument(
        "--executor", metavar="NAME", help="Snakemake's executor, for example slurm (default: this machine)"
    )
    action = benchmark.add_mutually_exclusive_group()
    action.add_argument("--dry-run", action="store_true", help="list the jobs that are not done, and run none")
    action.add_argument("--status", action="store_true", help="print what is done, and run nothing")
    benchmark.add_argument(
        "options", metavar="-- OPTION", nargs="*", help="further options of Snakemake, after --, for example -- --quiet"
    )
    benchmark.passed_on = "options"
    benchmark.set_defaults(run=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> int:
    from nnunet_dg.extras import require

    require("benchmark", "A benchmark")
    from nnunet_dg.benchmark import run

    a = arguments
    if a.o is None and not a.plan.suffix:
        raise SettingsError(f"{a.plan} has no extension such as .yaml, so name the folder of the benchmark: -o.")
    output = (a.o or a.plan.with_suffix("")).resolve()
    if a.status:
        return run.status(a.plan, output)
    with in_options({"executor": "--executor"}):
        return run.benchmark(
            a.plan, output, number_of_jobs=a.jobs, gpus=a.gpus, executor=a.executor, dry_run=a.dry_run,
            options=a.options,
        )  # fmt: skip
