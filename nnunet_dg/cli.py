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
    _add_evaluate(commands)
    _add_report(commands)
    _add_stress(commands)
    _add_stability(commands)

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


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="Dice, HD95, ASSD and normalized surface Dice of a folder of predictions",
        description="Writes evaluation.csv and evaluation.json, a row per case and label. Distances are in mm, by the "
        "truth's spacing. Where both masks are empty there is nothing to find, and nothing is counted; where one is, "
        "Dice is 0 and the distances are the image's diagonal. Voxels with the ignore label do not count.",
    )
    evaluate.add_argument("truths", metavar="TRUTHS", type=Path, help="folder of segmentations, for example labelsTs")
    evaluate.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder of segmentations")
    evaluate.add_argument(
        "-djfile", metavar="FILE", type=Path,
        help="dataset.json (default: beside the predictions, or in the results folder they are in)",
    )  # fmt: skip
    evaluate.add_argument("-o", metavar="OUT", type=Path, help="folder (default: PREDICTIONS)")
    evaluate.add_argument("-np", metavar="N", type=_positive, default=2, help="cases at a time (default: %(default)s)")
    evaluate.add_argument(
        "--tolerance", metavar="MM", type=float, default=1.0, help="of the surface Dice, in mm (default: %(default)s)"
    )
    evaluate.add_argument(
        "--missing", choices=("error", "zero", "skip"), default="error",
        help="truths without a prediction are an error, count as empty predictions, or are left out "
        "(default: %(default)s)",
    )  # fmt: skip
    evaluate.add_argument(
        "--ignore-affine", action="store_true",
        help="compare voxel by voxel, also where origin, direction or spacing differ",
    )  # fmt: skip
    evaluate.set_defaults(run=_evaluate)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser(
        "report",
        help="trainers beside each other, in-domain and unseen: tables, tests and pictures",
        description="Reads nnU-Net's validations and evaluated folders. Writes report.html, report.md, report.tex, "
        "tables as CSV and pictures as PNG. Which cases of a validation are from unseen domains follows from the "
        "dataset's domains.json and splits_final.json.",
    )
    report.add_argument(
        "results", metavar="[NAME=]RESULT", nargs="+",
        help="a results folder of nnU-Net, TRAINER__PLANS__CONFIGURATION, or a folder that nnunet-dg evaluate wrote "
        "to. The same NAME several times: one trainer, trained repeatedly",
    )  # fmt: skip
    report.add_argument("-o", metavar="OUT", type=Path, required=True, help="folder")
    report.add_argument(
        "--baseline", metavar="NAME", help="that others are tested against (default: nnUNetTrainer, or the first)"
    )
    report.add_argument(
        "--metric", choices=("dice", "hd95_mm", "assd_mm", "nsd"), default="dice",
        help="of ranks, tests and pictures (default: %(default)s)",
    )  # fmt: skip
    report.add_argument(
        "--domains", metavar="FILE", type=Path, help='JSON, {"case": "domain"}, of the cases of evaluated folders'
    )
    report.add_argument(
        "--trained-on", metavar="DOMAIN", nargs="+", default=[],
        help="domains of the training data of evaluated folders' models; all others are unseen",
    )  # fmt: skip
    report.set_defaults(run=_report)


def _add_stress(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    stress = commands.add_parser(
        "stress",
        help="trained models on corrupted images and with noise on their weights",
        description="Gamma, bias field, noise, blur, low resolution, inversion and Gibbs ringing of rising strength, "
        "applied to raw images and predicted as nnU-Net predicts; and Gaussian noise on the trained weights. Writes "
        "stress.csv and stress.png. What is measured is kept, and the same command goes on after an interruption.",
    )
    stress.add_argument(
        "models", metavar="[NAME=]MODEL", nargs="+", help="results folders of nnU-Net, TRAINER__PLANS__CONFIGURATION"
    )
    _add_cases(stress)
    stress.add_argument("--kinds", metavar="KIND", nargs="+", help="some of them alone, for example gamma inversion")
    stress.add_argument(
        "--draws", metavar="N", type=_positive, default=5, help="of noise on the weights (default: %(default)s)"
    )
    stress.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    stress.set_defaults(run=_stress)


def _add_stability(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    stability = commands.add_parser("stability", help="of features under other contrasts, and what a model leans on")
    actions = stability.add_subparsers(title="actions", required=True, metavar="ACTION")
    features = actions.add_parser(
        "features",
        help="are features the same where the contrast is another?",
        description="Linear CKA between an extractor's features of co-registered images of different contrast, and "
        "under rising gamma, with the image's own intensity beside it; and the features as colours.",
    )
    features.add_argument(
        "images", metavar="[NAME=]IMAGE", nargs="+", help="co-registered images of one subject, on one grid"
    )
    features.add_argument(
        "-x", metavar="EXTRACTOR", nargs="+", default=["mind"],
        help="mind, anatomix; anatomix-dev and nnunet as NAME=WEIGHTS (default: mind)",
    )  # fmt: skip
    features.add_argument("-o", metavar="OUT", type=Path, required=True, help="folder")
    features.add_argument(
        "--patch", metavar="N", nargs="+", type=_positive, default=[128, 128, 128],
        help="voxels around the centre, slices first (default: 128 128 128)",
    )  # fmt: skip
    features.set_defaults(run=_stability_features)
    reliance = actions.add_parser(
        "reliance",
        help="what a DropGen model leans on: Dice with the image, or the features, zeroed",
        description="Predicts with a trained DropGen model as it is, without the image, and without the features.",
    )
    reliance.add_argument("model", metavar="MODEL", type=Path, help="results folder, TRAINER__PLANS__CONFIGURATION")
    _add_cases(reliance)
    reliance.set_defaults(run=_stability_reliance)


def _add_cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", metavar="OUT", type=Path, required=True, help="folder")
    parser.add_argument(
        "-i", metavar="IMAGES", type=Path,
        help="folder of images in nnU-Net's format (default: the validation cases of the first fold)",
    )  # fmt: skip
    parser.add_argument("-t", metavar="TRUTHS", type=Path, help="folder of their segmentations")
    parser.add_argument("-f", metavar="FOLD", nargs="+", help="default: the ones that were trained")
    parser.add_argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("--max-cases", metavar="N", type=_positive, help="the first N cases alone")
    parser.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), default="cuda", help="as nnU-Net's (default: %(default)s)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="no test-time mirroring, as nnU-Net's")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a positive number; got {text!r}")
    return int(text)


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


def _evaluate(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from nnunet_dg.evaluation.report import readable_means
    from nnunet_dg.nnunet.evaluate import evaluate

    a = arguments
    table = evaluate(a.truths, a.predictions, a.djfile, a.o, a.missing, a.tolerance, a.np, a.ignore_affine)
    Console().print(readable_means(table).to_string(index=False), markup=False, highlight=False)
    print(f"Written: {(a.o or a.predictions) / 'evaluation.csv'} and evaluation.json")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from nnunet_dg.nnunet.results import Source, report

    a = arguments
    try:
        table = report([Source.parse(text) for text in a.results], a.o, a.baseline, a.metric, a.domains, a.trained_on)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    print(table.to_string(index=False))
    print(f"Written: {a.o / 'report.html'}, report.md, report.tex, and the tables as CSV")
    return 0


def _stress(arguments: argparse.Namespace) -> int:
    from nnunet_dg.nnunet.results import Source
    from nnunet_dg.nnunet.stress import KINDS, overview, stress

    a = arguments
    if unknown := [kind for kind in a.kinds or [] if kind not in KINDS]:
        raise RuntimeError(f"--kinds must be among {', '.join(map(repr, KINDS))}; got {unknown[0]!r}.")
    sources = [Source.parse(text) for text in a.models]
    table = stress(
        sources, a.o, a.i, a.t, a.kinds or KINDS, a.f, a.chk, a.max_cases, a.draws, a.seed, a.device, not a.disable_tta
    )
    print(overview(table).to_string(index=False))
    print(f"Written: {a.o / 'stress.csv'} and stress.png")
    return 0


def _stability_features(arguments: argparse.Namespace) -> int:
    from nnunet_dg.evaluation.stability import stability
    from nnunet_dg.extractors import build_extractor

    a = arguments
    images = _named(a.images)
    if len(images) < len(a.images):
        raise RuntimeError("Two images have one name. Say which they are: NAME=IMAGE.")
    weights = {name: path or None for name, _, path in (text.partition("=") for text in a.x)}
    try:
        extractors = {n: build_extractor(n, weights=w, spatial_dims=len(a.patch)) for n, w in weights.items()}
    except (ValueError, NotImplementedError) as error:
        raise RuntimeError(str(error)) from error
    print(stability(images, extractors, a.patch, a.o).to_string(index=False))
    print(f"Written: {a.o / 'contrasts.csv'}, gamma.csv, and pictures")
    return 0


def _named(texts: Sequence[str]) -> dict[str, Path]:
    """``NAME=PATH``, or a path, whose name is its file's."""
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).name.split(".")[0], text
        found[name] = Path(path)
    return found


def _stability_reliance(arguments: argparse.Namespace) -> int:
    from nnunet_dg.nnunet.reliance import reliance

    a = arguments
    table = reliance(a.model, a.o, a.i, a.t, a.f, a.chk, a.max_cases, a.device, not a.disable_tta)
    means = table.groupby("zeroed", sort=False)["dice"].mean().mul(100).round(1)
    print(means.rename("Dice (%)").reset_index().to_string(index=False))
    print(f"Written: {a.o / 'reliance.csv'}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from nnunet_dg.demo.run import run_demo

    run_demo(arguments.output.resolve(), arguments.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
