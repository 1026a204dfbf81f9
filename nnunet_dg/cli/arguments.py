"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from nnunet_dg.errors import UserError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def positive(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or len(text) > 18 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a positive number; got {text!r}")
    return int(text)


def fold(text: str) -> int | str:
    """A fold: a number, or all."""
    if text != "all" and not (text.isdecimal() and len(text) < 5):
        raise argparse.ArgumentTypeError(f"a fold is a number or all; got {text!r}")
    return text if text == "all" else int(text)


@contextmanager
def in_options(options: Mapping[str, str]) -> Iterator[None]:
    """Expected errors name the options of a command in place of the arguments, in backticks, of our functions.

    Args:
        options: ``{argument: option}``, for example ``{"trained_on": "--trained-on"}``.
    """
    try:
        yield
    except UserError as error:
        text = re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[0]), str(error))
        raise type(error)(text) from error


def add_cases(parser: argparse.ArgumentParser) -> None:
    """Labeled cases, how a trained model predicts them, and where to write."""
    parser.add_argument("-o", metavar="OUT", type=Path, required=True, help="folder")
    parser.add_argument(
        "-i", metavar="IMAGES", type=Path,
        help="folder of images in nnU-Net's format (default: the validation cases of the fold)",
    )  # fmt: skip
    parser.add_argument("-t", metavar="TRUTHS", type=Path, help="folder of their segmentations")
    parser.add_argument(
        "-f", metavar="FOLD", nargs="+", type=fold, help="several are an ensemble (default: the one that was trained)"
    )
    parser.add_argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("--max-cases", metavar="N", type=positive, help="only the first N cases")
    parser.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), default="cuda", help="same as nnU-Net's (default: %(default)s)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="no test-time mirroring, same as nnU-Net's")


def cases_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_cases` has added, by the names that our functions have for it."""
    a = arguments
    return {
        "images": a.i, "truths": a.t, "folds": a.f, "checkpoint": a.chk, "max_cases": a.max_cases, "device": a.device,
        "mirroring": not a.disable_tta,
    }  # fmt: skip
