"""``nnunet-dg predict``: prediction with test-time adaptation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunet_dg.cli.arguments import Commands, fold, in_options
from nnunet_dg.errors import SettingsError

OPTIONS = {
    "steps": "--steps", "rate": "--rate", "statistics": "--statistics", "rounds": "--rounds", "stable": "--stable",
    "validation": "--validation-domain", "images": "--validation-images", "truths": "--validation-truths",
    "validation_domain": "--validation-domain", "target_domain": "--target-domain",
    "allow_target": "--allow-target-domain", "folds": "-f", "checkpoint": "-chk", "device": "-device",
    "step_size": "-step_size",
}  # fmt: skip
"""Options by the argument names of our functions, for `in_options`."""
VALIDATION = ("validation_images", "validation_truths", "validation_domain", "target_domain", "allow_target_domain")


def add_predict(commands: Commands) -> None:
    """Add ``nnunet-dg predict``."""
    predict = commands.add_parser(
        "predict",
        help="predict with test-time adaptation: tent, sfb or alpha",
        description="Predicts a folder of images with a trained model that adapts to each of them, and writes what was "
        "adapted to adaptation.json. Models on disk never change. Options from -i to --disable_progress_bar are "
        "nnU-Net's own. Prediction without adaptation is nnUNetv2_predict.",
    )
    predict.add_argument(
        "--adapt", choices=("tent", "sfb", "alpha"), required=True,
        help="tent: norm layers minimize the entropy of each volume; sfb: an unstable model is fine-tuned to a stable "
        "one's pseudo-labels; alpha: both models' logits are mixed",
    )  # fmt: skip
    _add_nnunets(predict)
    predict.add_argument("--steps", metavar="N", type=int, help="steps per volume (tent: 10), or per round (sfb: 50)")
    predict.add_argument("--rate", metavar="RATE", type=float, help="learning rate (tent: 0.001, sfb: 0.0001)")
    predict.add_argument(
        "--statistics", choices=("patch", "source"),
        help="tent, batch norm: statistics of each window, or the trained ones, at prediction (default: patch)",
    )  # fmt: skip
    predict.add_argument(
        "--rounds", metavar="N", type=int, help="sfb: rounds of fine-tuning and correction (default: 3)"
    )
    predict.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    predict.add_argument(
        "--stable", metavar="MODEL", type=Path,
        help="sfb, alpha: results folder of the stable model; -m, or -d and so on, is the unstable one",
    )  # fmt: skip
    _add_validation(predict)
    predict.set_defaults(run=_predict)


def _add_nnunets(predict: argparse.ArgumentParser) -> None:
    """Add the options that nnUNetv2_predict has as well."""
    predict.add_argument("-i", metavar="IMAGES", type=Path, required=True, help="folder of images in nnU-Net's format")
    predict.add_argument("-o", metavar="OUT", type=Path, required=True, help="output folder")
    predict.add_argument(
        "-m", metavar="MODEL", type=Path, help="model folder; or name the model with -d, -c, -tr and -p"
    )
    predict.add_argument("-d", metavar="ID", help="dataset name or number")
    predict.add_argument("-c", metavar="CONFIG", help="configuration, for example 3d_fullres")
    predict.add_argument("-tr", metavar="TRAINER", help="trainer (default: nnUNetTrainer)")
    predict.add_argument("-p", metavar="PLANS", help="name of the plans (default: nnUNetPlans)")
    predict.add_argument(
        "-f", metavar="FOLD", nargs="+", default=range(5), type=fold, help="folds (default: 0 1 2 3 4)"
    )
    predict.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint (default: %(default)s)"
    )
    predict.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), default="cuda", help="same as nnU-Net's (default: %(default)s)"
    )
    predict.add_argument(
        "-step_size", metavar="STEP", type=float, default=0.5,
        help="step of the sliding window as a fraction of the patch (default: %(default)s)",
    )  # fmt: skip
    predict.add_argument("--disable_tta", action="store_true", help="turn off test-time mirroring")
    predict.add_argument("--not_on_device", action="store_true", help="keep logits on the CPU, which saves GPU memory")
    predict.add_argument("--save_probabilities", action="store_true", help="write probabilities as well")
    predict.add_argument(
        "--continue_prediction", action="store_true", help="skip cases already predicted with the same options"
    )
    predict.add_argument("--disable_progress_bar", action="store_true", help="show no progress bar")


def _add_validation(predict: argparse.ArgumentParser) -> None:
    predict.add_argument(
        "--validation-images", metavar="IMAGES", type=Path,
        help="sfb, alpha: images on which temperature or alpha is chosen (default: the validation cases of the fold)",
    )  # fmt: skip
    predict.add_argument("--validation-truths", metavar="TRUTHS", type=Path, help="folder of their true segmentations")
    predict.add_argument(
        "--validation-domain", metavar="NAME", help="name of their domain (default: that in domains.json)"
    )
    predict.add_argument(
        "--target-domain",
        metavar="NAME",
        help="name of the domain of IMAGES (default: that in domains.json, if they are cases of the dataset)",
    )
    predict.add_argument(
        "--allow-target-domain", action="store_true", help="accept a validation set of the target domain"
    )


def _predict(arguments: argparse.Namespace) -> int:
    from nnunet_dg.adaptation.predict import predict

    a = arguments
    with in_options(OPTIONS):
        settings = _settings(a)
        record = predict(
            a.i, a.o, settings, _model(a), a.stable, _validation(a) if settings.two_models else None,
            folds=tuple(a.f), checkpoint=a.chk, device=a.device, mirroring=not a.disable_tta, step_size=a.step_size,
            on_device=not a.not_on_device, save_probabilities=a.save_probabilities, resume=a.continue_prediction,
            seed=a.seed, progress=not a.disable_progress_bar,
        )  # fmt: skip
    for name, value in (record.chosen or {}).items():
        if isinstance(value, float):
            print(f"{name}, chosen on the validation set: {value:g}")
    empty = [case for case, notes in record.cases.items() if not notes["foreground_fraction"]]
    if empty:
        print(f"No foreground is predicted in {len(empty)} of {len(record.cases)} cases, for example {empty[0]}.")
    print(f"Written: {len(record.cases)} predictions and {record.path}")
    return 0


def _settings(a: argparse.Namespace) -> Any:
    """The method with the settings that are given. Options of other methods are refused."""
    from nnunet_dg.adaptation.settings import METHODS

    method = METHODS[a.adapt]
    given = {name: getattr(a, name) for name in ("steps", "rate", "statistics", "rounds")}
    given = {name: value for name, value in given.items() if value is not None}
    unused = [name for name in given if name not in method.names()]
    if not method.two_models:
        unused += [name for name in ("stable", *VALIDATION) if getattr(a, name) not in (None, False)]
    if unused:
        raise SettingsError(f"--adapt {a.adapt} does not use --{unused[0].replace('_', '-')}. Leave it out.")
    return method(**given)


def _model(a: argparse.Namespace) -> Path:
    from nnunet_dg.host import results_folder

    named = [f"-{name}" for name in ("d", "c", "tr", "p") if getattr(a, name) is not None]
    if a.m is not None:
        if named:
            raise SettingsError(f"-m names the model already, and so does {named[0]}. Give one of both.")
        return Path(a.m)
    if a.d is None or a.c is None:
        raise SettingsError("Name the model: its folder with -m, or its dataset and configuration with -d and -c.")
    return results_folder(a.d, a.tr or "nnUNetTrainer", a.p or "nnUNetPlans", a.c)


def _validation(a: argparse.Namespace) -> Any:
    from nnunet_dg.adaptation.cases import Validation

    return Validation(
        a.validation_images, a.validation_truths, a.validation_domain, a.target_domain, a.allow_target_domain
    )
