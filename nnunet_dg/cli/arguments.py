"""Arguments that several commands share, and the translation of argument names to options in error messages."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from nnunet_dg.errors import UserError

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
CASE_OPTIONS = {
    "images": "-i", "truths": "-t", "folds": "-f", "checkpoint": "-chk", "max_cases": "--max-cases",
    "device": "-device",
}  # fmt: skip
"""Options of `add_cases` by the argument names of our functions, for `in_options`."""


class Parser(argparse.ArgumentParser):
    """A parser that says why arguments are missing where an option before them took them for its own.

    Attributes:
        passed_on: Name of the argument that receives all words after ``--``; None if no argument does. `argparse`
            refuses them where options are between the arguments before ``--``.
    """

    passed_on: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse`, and `passed_on`."""
        words = list(sys.argv[1:] if args is None else args)
        if self.passed_on is None or "--" not in words:
            return super().parse_known_args(words, namespace)
        first = words.index("--")
        parsed, unknown = super().parse_known_args(words[:first], namespace)
        setattr(parsed, self.passed_on, words[first + 1 :])
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        greedy = [action.option_strings[0] for action in self._actions if action.option_strings and action.nargs == "+"]
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message and greedy and any(not name.startswith("-") for name in missing.split(", ")):
            message += f" (options that take several values, {', '.join(greedy)}, belong after them)"
        super().error(message)


def positive(text: str) -> int:
    """Parse a positive whole number."""
    if not text.isdecimal() or len(text) > 18 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number; got {text!r}")
    return int(text)


def fold(text: str) -> int | str:
    """Parse a fold, which is a number or ``all``."""
    if text != "all" and not (text.isdecimal() and len(text) < 5):
        raise argparse.ArgumentTypeError(f"a fold must be a number or all; got {text!r}")
    return text if text == "all" else int(text)


@contextmanager
def in_options(options: Mapping[str, str]) -> Iterator[None]:
    """Replace argument names in backticks by the options of a command in the messages of expected errors.

    Messages of the library name the arguments of its functions, since it does not know the command line.

    Args:
        options: ``{argument: option}``, for example ``{"trained_on": "--trained-on"}``.
    """
    try:
        yield
    except UserError as error:
        text = re.sub(r"`(\w+)`", lambda found: options.get(found[1], found[0]), str(error))
        raise type(error)(text) from error


def add_cases(parser: argparse.ArgumentParser) -> None:
    """Add options for labeled cases, for how a trained model predicts them, and for the output folder."""
    parser.add_argument("-o", metavar="OUT", type=Path, required=True, help="output folder")
    parser.add_argument(
        "-i", metavar="IMAGES", type=Path,
        help="folder of images in nnU-Net's format (default: the validation cases of the fold)",
    )  # fmt: skip
    parser.add_argument("-t", metavar="TRUTHS", type=Path, help="folder of their true segmentations")
    parser.add_argument(
        "-f", metavar="FOLD", nargs="+", type=fold, help="fold, or several as an ensemble (default: the trained one)"
    )
    parser.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint (default: %(default)s)"
    )
    parser.add_argument("--max-cases", metavar="N", type=positive, help="use only the first N cases (default: all)")
    parser.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), default="cuda", help="same as nnU-Net's (default: %(default)s)"
    )
    parser.add_argument("--disable_tta", action="store_true", help="turn off test-time mirroring, same as nnU-Net's")


def cases_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of the options of `add_cases`, by the argument names of our functions."""
    a = arguments
    return {
        "images": a.i, "truths": a.t, "folds": a.f, "checkpoint": a.chk, "max_cases": a.max_cases, "device": a.device,
        "mirroring": not a.disable_tta,
    }  # fmt: skip
