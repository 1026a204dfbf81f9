"""``nnunet-dg splits``, ``evaluate`` and ``report``: evaluation on unseen domains."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_dg.cli.arguments import Commands, fold, in_options, positive


def add_splits(commands: Commands) -> None:
    """Add ``nnunet-dg splits``."""
    splits = commands.add_parser(
        "splits",
        help="write folds by domain for nnU-Net, such as leave one domain out",
        description="Writes splits_final.json to the preprocessed dataset folder, based on domains.json, and prints a "
        "table of the folds. nnUNetv2_train ID CONFIG FOLD then trains and validates on them.",
    )
    schemes = splits.add_subparsers(title="schemes", required=True, metavar="SCHEME", dest="scheme")
    for name, text in {
        "leave-one-domain-out": "fold k validates on the k-th domain and trains on all others, except groups in "
        "validation",
        "single-source": "fold k trains on the k-th domain, except groups in validation, and validates on all others",
        "few-shot": "each fold trains on a few random cases and validates on all others, except groups in training",
        "grouped": "ordinary cross-validation that splits no group, such as the scans of a patient",
    }.items():
        scheme = schemes.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        scheme.add_argument("-d", metavar="ID", required=True, help="dataset name or number")
        scheme.add_argument(
            "--groups", type=Path, metavar="FILE", required=name == "grouped",
            help='JSON file {"case": "group"}; a group, such as the scans of one subject, is never split between '
            "training and validation (default: each case is a group)",
        )  # fmt: skip
        existing = scheme.add_mutually_exclusive_group()
        existing.add_argument("--force", action="store_true", help="replace existing splits")
        existing.add_argument(
            "--keep", action="store_true", help="keep existing splits if they are the same; others are an error"
        )
        scheme.add_argument("--seed", type=int, default=0, help="seed of random draws (default: %(default)s)")
        if name == "few-shot":
            scheme.add_argument("-n", type=int, required=True, metavar="CASES", help="number of training cases")
            scheme.add_argument(
                "--source", nargs="+", default=[], metavar="DOMAIN",
                help="domains from which training cases are drawn (default: all)",
            )  # fmt: skip
        if name in ("few-shot", "grouped"):
            scheme.add_argument("--folds", type=int, default=5, help="number of folds (default: %(default)s)")
        else:
            scheme.add_argument(
                "--hold-out", type=float, default=1.0, metavar="FRACTION",
                help="fraction held out of the groups that have cases both in held-out and in other domains; a fold "
                "trains on the rest. If every group is in every domain, use for example 0.2 (default: %(default)g)",
            )  # fmt: skip
            scheme.add_argument(
                "--in-domain", type=float, default=0.0, metavar="FRACTION",
                help="fraction of each training domain's groups that folds validate on in place of training, so that "
                "in-domain results are next to unseen ones (default: %(default)g)",
            )  # fmt: skip
            scheme.add_argument(
                "--validation-domain", metavar="DOMAIN",
                help="domain for choosing settings and trainers: no fold trains on it or holds it out, and all "
                "validate on it (default: none)",
            )  # fmt: skip
    splits.set_defaults(run=_splits)


def _splits(arguments: argparse.Namespace) -> int:
    from nnunet_dg.datasets import splits
    from nnunet_dg.datasets.split_dataset import split_dataset

    a = arguments
    schemes = {
        "leave-one-domain-out": lambda domains, groups: splits.leave_one_domain_out(
            domains, groups, a.hold_out, a.seed, a.in_domain, a.validation_domain
        ),
        "single-source": lambda domains, groups: splits.single_source(
            domains, groups, a.hold_out, a.seed, a.in_domain, a.validation_domain
        ),
        "few-shot": lambda domains, groups: splits.few_shot(domains, a.n, a.folds, a.seed, groups, a.source),
        "grouped": lambda domains, groups: splits.grouped(domains, groups, a.folds, a.seed),
    }
    names = ("folds", "seed", "source", "hold_out", "in_domain", "validation_domain", "groups", "force")
    with in_options({name: f"--{name.replace('_', '-')}" for name in names} | {"dataset": "-d"}):
        print(f"Written: {split_dataset(a.d, schemes[a.scheme], a.groups, a.force, a.keep)}")
    return 0


def add_evaluate(commands: Commands) -> None:
    """Add ``nnunet-dg evaluate``."""
    evaluate = commands.add_parser(
        "evaluate",
        help="compute Dice, HD95, ASSD and normalized surface Dice of a folder of predictions",
        description="Writes evaluation.csv and evaluation.json, with one row per case and label. Distances are in mm, "
        "measured with the truth's spacing. If both masks of a label are empty, it has no metrics and is left out of "
        "means. If one is empty, Dice is 0 and distances are the diagonal of the image. Voxels with the ignore label "
        "are excluded. If cases cannot be evaluated, all of them are named, nothing is written, and the exit status is "
        "1.",
    )
    evaluate.add_argument("truths", metavar="TRUTHS", type=Path, help="folder of segmentations, for example labelsTs")
    evaluate.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder of segmentations")
    evaluate.add_argument(
        "-djfile", metavar="FILE", type=Path,
        help="dataset.json (default: next to the predictions, or in the results folder that contains them)",
    )  # fmt: skip
    evaluate.add_argument("-o", metavar="OUT", type=Path, help="output folder (default: PREDICTIONS)")
    evaluate.add_argument(
        "-np", metavar="N", type=positive, default=2, help="number of processes (default: %(default)s)"
    )
    evaluate.add_argument(
        "--tolerance", metavar="MM", type=float, default=1.0,
        help="tolerance of the normalized surface Dice, in mm (default: %(default)s)",
    )  # fmt: skip
    evaluate.add_argument(
        "--missing", choices=("error", "zero", "skip"), default="error",
        help="whether missing predictions are an error, count as empty, or are left out (default: %(default)s)",
    )  # fmt: skip
    evaluate.add_argument(
        "--ignore-affine", action="store_true",
        help="compare voxel by voxel even if origin, direction or spacing differ",
    )  # fmt: skip
    evaluate.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from nnunet_dg.evaluation.evaluate import evaluate
    from nnunet_dg.names import printable_lines
    from nnunet_dg.reporting.report import readable_means

    a = arguments
    options = {"dataset_json": "-djfile", "output": "-o", "processes": "-np", "tolerance_mm": "--tolerance"}
    with in_options(options | {"missing": "--missing", "ignore_affine": "--ignore-affine"}):
        table = evaluate(
            a.truths, a.predictions, dataset_json=a.djfile, output=a.o, missing=a.missing, tolerance_mm=a.tolerance,
            processes=a.np, ignore_affine=a.ignore_affine,
        )  # fmt: skip
    print(printable_lines(readable_means(table).to_string(index=False)))
    print(printable_lines(f"Written: {(a.o or a.predictions) / 'evaluation.csv'} and evaluation.json"))
    return 0


def add_report(commands: Commands) -> None:
    """Add ``nnunet-dg report``."""
    report = commands.add_parser(
        "report",
        help="compare trainers, in-domain and on unseen domains, with tables, tests and figures",
        description="Reads nnU-Net's validations and evaluated folders. Writes report.html, report.md, report.tex, "
        "tables as CSV and figures as PNG. For validations, unseen cases are determined from the dataset's "
        "domains.json and splits_final.json.",
    )
    report.add_argument(
        "results", metavar="[NAME=]RESULT", nargs="+",
        help="nnU-Net's results folder TRAINER__PLANS__CONFIGURATION, or a folder that nnunet-dg evaluate wrote to. "
        "Results with the same NAME are repeated trainings if they share a case of a fold, else parts of one training",
    )  # fmt: skip
    report.add_argument("-o", metavar="OUT", type=Path, required=True, help="output folder")
    report.add_argument(
        "-f", metavar="FOLD", nargs="+", type=fold, help="folds of results folders (default: all that were validated)"
    )
    report.add_argument(
        "--baseline", metavar="NAME", help="trainer that the others are tested against (default: nnUNetTrainer)"
    )
    report.add_argument(
        "--metric", choices=("dice", "hd95_mm", "assd_mm", "nsd"), default="dice",
        help="metric of ranks, tests and figures (default: %(default)s)",
    )  # fmt: skip
    report.add_argument(
        "--domains", metavar="FILE", type=Path, help='JSON file {"case": "domain"} for the cases of evaluated folders'
    )
    report.add_argument(
        "--trained-on", metavar="DOMAIN", nargs="+", default=[],
        help="training domains of the models of evaluated folders; all other domains are unseen",
    )  # fmt: skip
    report.add_argument(
        "--validation-domain", metavar="DOMAIN",
        help="domain that settings and trainers were chosen on; its cases are neither in-domain nor unseen",
    )  # fmt: skip
    report.add_argument("--costs", metavar="FILE", type=Path, help="CSV file that is printed as the table of costs")
    report.add_argument(
        "--choices", metavar="FILE", type=Path, help="CSV file that is printed as the table of what was chosen"
    )
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from nnunet_dg.names import printable
    from nnunet_dg.reporting.results import report
    from nnunet_dg.reporting.sources import Source

    a = arguments
    names = ("baseline", "metric", "domains", "trained_on", "costs", "validation_domain", "choices")
    sources = [Source.parse(text) for text in a.results]
    with in_options({name: f"--{name.replace('_', '-')}" for name in names}):
        table = report(
            sources, a.o, a.baseline, a.metric, a.domains, a.trained_on, a.costs, a.validation_domain, a.choices,
            None if a.f is None else [str(number) for number in a.f],
        )  # fmt: skip
    shown = table.rename(columns=printable).map(printable)
    print(shown.to_string(index=False))
    print(f"Written: {a.o / 'report.html'}, report.md, report.tex, and the tables as CSV")
    return 0
