"""The command ``nnunet-dg``. Training and predicting stay nnU-Net's own commands."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

EXT_TRAINERS = Path(__file__).parent / "ext_trainers"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected errors are printed without a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:  # WeightsError, DemoError
        print(f"nnunet-dg: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet-dg",
        description="Domain generalization for nnU-Net. "
        "To train: nnUNetv2_train ID CONFIG FOLD -tr nnUNetTrainerDropGen",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('nnunet-dg')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    doctor = commands.add_parser(
        "doctor", help="check that nnU-Net finds our trainers, which weights are here, which device"
    )
    doctor.set_defaults(run=_doctor)

    env = commands.add_parser(
        "env",
        help="print the environment variable for those who switch PyTorch's autoload off",
        description='For shells in which TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set: eval "$(nnunet-dg env)". '
        "Trainers only, and nnU-Net 2.8 or newer.",
    )
    env.set_defaults(run=_env)

    _add_weights(commands)
    _add_export(commands)
    _add_splits(commands)

    demo = commands.add_parser(
        "demo",
        help="a domain shift on two CPU cores in ten minutes, by nnU-Net's own commands",
        description="Makes a two-domain phantom dataset, trains nnUNetTrainer and nnUNetTrainerDropGen_MIND on one of "
        "them for ten short epochs each, predicts both domains and prints Dice. "
        "Rerun in the same folder to continue after the last finished step.",
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("nnunet-dg-demo"), help="folder (default: %(default)s)")
    demo.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), default="cpu", help="as nnU-Net's (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)
    return parser


def _add_weights(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    weights = commands.add_parser("weights", help="list, fetch or install the weights of extractors and teachers")
    actions = weights.add_subparsers(title="actions", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="which weights are on this machine, and where")
    listing.set_defaults(run=_weights_list)
    fetch = actions.add_parser("fetch", help="download and verify (on a machine with internet)")
    fetch.add_argument("name", help="anatomix, or a ViT of timm, for example samvit_base_patch16.sa1b")
    fetch.set_defaults(run=_weights_fetch)
    install = actions.add_parser("install", help="put a local file where trainings look for it")
    install.add_argument("name", help="the extractor, for example anatomix")
    install.add_argument("file", type=Path, help="the file, as published")
    install.add_argument(
        "--unpublished", action="store_true", help="accept a file with the right layout that is not the published one"
    )
    install.set_defaults(run=_weights_install)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="a model for people who have nnU-Net alone",
        description="Writes the model of a trainer whose network is nnU-Net's own (nnUNetTrainerSgCG, "
        "nnUNetTrainerTinyMIG) as one of plain nnUNetTrainer, after checking that both give the same logits. Options "
        "are those of nnUNetv2_export_model_to_zip.",
    )
    export.add_argument("-d", metavar="ID", required=True, help="dataset name or number")
    export.add_argument("-c", metavar="CONFIG", required=True, help="configuration, for example 3d_fullres")
    export.add_argument("-tr", metavar="TRAINER", required=True, help="the trainer that trained the model")
    export.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    export.add_argument("-f", metavar="FOLD", nargs="+", default=range(5), type=_fold, help="default: 0 1 2 3 4")
    export.add_argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="default: %(default)s")
    export.add_argument(
        "-o", metavar="OUT", type=Path, required=True,
        help="a folder, for nnUNetv2_predict_from_modelfolder -m, or a file .zip, for "
        "nnUNetv2_install_pretrained_model_from_zip (which writes over a nnUNetTrainer model of the same plans)",
    )  # fmt: skip
    export.set_defaults(run=_export)


def _add_splits(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    splits = commands.add_parser(
        "splits",
        help="folds by domain, for nnU-Net: leave one domain out, and others",
        description="Writes splits_final.json into the preprocessed dataset folder, from domains.json, and prints "
        "which fold is which. nnUNetv2_train ID CONFIG FOLD then trains and validates on it.",
    )
    schemes = splits.add_subparsers(title="schemes", required=True, metavar="SCHEME", dest="scheme")
    for name, text in {
        "leave-one-domain-out": "fold k validates on the k-th domain and trains on all others",
        "single-source": "fold k trains on the k-th domain alone and validates on all others",
        "few-shot": "each fold trains on a few random cases",
        "grouped": "ordinary cross-validation in which no group, a patient say, is split",
    }.items():
        scheme = schemes.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        scheme.add_argument("-d", metavar="ID", required=True, help="dataset name or number")
        scheme.add_argument(
            "--groups", type=Path, metavar="FILE", required=name == "grouped",
            help='JSON, {"case": "group"}: cases that must not be split between training and validation',
        )  # fmt: skip
        scheme.add_argument("--force", action="store_true", help="write over splits that are there")
        if name == "few-shot":
            scheme.add_argument("-n", type=int, required=True, metavar="CASES", help="training cases")
        if name in ("few-shot", "grouped"):
            scheme.add_argument("--folds", type=int, default=5, help="how many (default: %(default)s)")
            scheme.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    splits.set_defaults(run=_splits)


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a fold is a number or all; got {text!r}")
    return text if text == "all" else int(text)


def _doctor(_: argparse.Namespace) -> int:
    from nnunet_dg.nnunet.doctor import report

    return 0 if report() else 1


def _env(_: argparse.Namespace) -> int:
    present = [path for path in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if path]  # noqa: SIM112
    paths = present if str(EXT_TRAINERS) in present else [*present, str(EXT_TRAINERS)]
    print(f"export nnUNet_extTrainer={shlex.quote(os.pathsep.join(paths))}")
    if version("nnunetv2").startswith("2.7."):
        print("nnunet-dg: nnU-Net 2.7 does not read nnUNet_extTrainer: update nnunetv2 to 2.8.", file=sys.stderr)
    return 0


def _weights_list(_: argparse.Namespace) -> int:
    from rich.console import Console

    from nnunet_dg.nnunet.doctor import weights_table

    Console().print(weights_table())
    return 0


def _weights_fetch(arguments: argparse.Namespace) -> int:
    from nnunet_dg.extractors import vit, weights

    if arguments.name not in weights.PUBLISHED and vit.is_published(arguments.name):
        print(f"Here: {vit.locate(arguments.name)}")
        return 0
    published = weights.published(arguments.name)
    if weights.state(published) == "published file":
        print(f"Already here: {weights.cached_path(published)}")
    else:
        print(f"Installed: {weights.fetch(published)}")
    return 0


def _weights_install(arguments: argparse.Namespace) -> int:
    from nnunet_dg.extractors import weights

    installed = weights.install(weights.published(arguments.name), arguments.file, unpublished=arguments.unpublished)
    print(f"Installed: {installed}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from nnunet_dg.nnunet.export import export

    a = arguments
    print(f"Exported: {export(a.d, a.c, a.tr, a.o, a.p, tuple(a.f), a.chk)}")
    return 0


def _splits(arguments: argparse.Namespace) -> int:
    from nnunet_dg.evaluation import splits
    from nnunet_dg.nnunet.split_dataset import split_dataset

    a = arguments
    schemes = {
        "leave-one-domain-out": splits.leave_one_domain_out,
        "single-source": splits.single_source,
        "few-shot": lambda domains, groups: splits.few_shot(domains, a.n, a.folds, a.seed, groups),
        "grouped": lambda domains, groups: splits.grouped(domains, groups, a.folds, a.seed),
    }
    try:
        print(f"Written: {split_dataset(a.d, schemes[a.scheme], a.groups, a.force)}")
    except (ValueError, FileExistsError) as error:
        raise RuntimeError(str(error)) from error
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from nnunet_dg.demo.run import run_demo

    run_demo(arguments.output.resolve(), arguments.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
