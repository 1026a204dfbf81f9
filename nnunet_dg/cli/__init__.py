"""The command ``nnunet-dg``. Training and prediction use nnU-Net's own commands."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from nnunet_dg.cli.arguments import Parser, in_options
from nnunet_dg.cli.benchmark import add_benchmark
from nnunet_dg.cli.cite import add_cite
from nnunet_dg.cli.ending import ends_cleanly, exit_status
from nnunet_dg.cli.methods import add_methods
from nnunet_dg.cli.predict import add_predict
from nnunet_dg.cli.pretrain import add_pretrain
from nnunet_dg.cli.scores import add_evaluate, add_report, add_splits
from nnunet_dg.cli.shifts import add_stability, add_stress
from nnunet_dg.cli.weights import add_export, add_weights

EXT_TRAINERS = Path(__file__).parents[1] / "ext_trainers"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Errors that a user can fix are printed as one line; all others keep their traceback. See `exit_status`.
    """
    try:
        with ends_cleanly():
            arguments = _parser().parse_args(argv)
            status = int(arguments.run(arguments))
            sys.stdout.flush()  # inside the try block, so that a closed pipe or a full disk is handled
            return status
    except BaseException as error:
        return exit_status(error)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="nnunet-dg",
        description="Domain generalization for nnU-Net. "
        "To train: nnUNetv2_train ID CONFIG FOLD -tr nnUNetTrainerDropGen",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('nnunet-dg')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor", help="check that nnU-Net finds the trainers, which weights are installed, and which device is used"
    )
    doctor.add_argument("-d", metavar="ID", help="name or number of a dataset to check as well")
    doctor.add_argument(
        "-p", metavar="PLANS", default="nnUNetPlans", help="name of the dataset's plans (default: %(default)s)"
    )
    doctor.set_defaults(run=_doctor)

    env = commands.add_parser(
        "env",
        help="print the environment variable that nnU-Net needs if PyTorch's autoload is switched off",
        description='For shells in which TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set: eval "$(nnunet-dg env)". '
        "It makes nnU-Net find the trainers, but not the planners, and needs nnU-Net 2.8 or newer.",
    )
    env.set_defaults(run=_env)

    add_methods(commands)
    add_cite(commands)
    add_weights(commands)
    add_export(commands)
    add_pretrain(commands)
    add_splits(commands)
    add_evaluate(commands)
    add_report(commands)
    add_stress(commands)
    add_stability(commands)
    add_predict(commands)
    add_benchmark(commands)

    demo = commands.add_parser(
        "demo",
        help="train and compare two trainers on a simulated domain shift, in five minutes on two CPU cores",
        description="Creates a phantom dataset with two domains, trains nnUNetTrainerERM (nnUNetTrainer with a seed) "
        "and nnUNetTrainerDropGen_MIND on one of them for 2700 steps each, with nnU-Net's own commands, predicts both "
        "domains and prints Dice. The trainings are seeded: another run on the same machine prints the same table. Run "
        "it again in the same folder to resume after an interruption.",
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("nnunet-dg-demo"), help="folder (default: %(default)s)")
    demo.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), default="cpu", help="same as nnU-Net's (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)
    return parser


def _env(_: argparse.Namespace) -> int:
    host = version("nnunetv2")  # before printing, since it raises if nnU-Net is missing
    present = [path for path in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if path]  # noqa: SIM112
    paths = present if str(EXT_TRAINERS) in present else [*present, str(EXT_TRAINERS)]
    print(f"export nnUNet_extTrainer={shlex.quote(os.pathsep.join(paths))}")
    if host.startswith("2.7."):
        print("nnunet-dg: nnU-Net 2.7 does not read nnUNet_extTrainer. Update nnunetv2 to 2.8.", file=sys.stderr)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from nnunet_dg.doctor.installation import report

    with in_options({"dataset": "-d", "plans": "-p"}):
        return 0 if report(arguments.d, arguments.p) else 1


def _demo(arguments: argparse.Namespace) -> int:
    from nnunet_dg.demo.run import run_demo

    run_demo(arguments.output.resolve(), arguments.device)
    return 0
