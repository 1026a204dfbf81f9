"""Colors, lines and markers that color-blind people can distinguish, also in a gray print; and text in pictures."""

from __future__ import annotations

from nnunet_dg.names import printable

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")  # Okabe and Ito
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LONGEST_TEXT = 60  # characters of a name in a picture


def style_of(number: int) -> tuple[str, str, str]:
    """Color, line and marker of the trainer ``number``; the ninth has the first one's color with another marker."""
    shifted = number + number // len(COLORS)
    return COLORS[number % len(COLORS)], LINES[shifted % len(LINES)], MARKERS[shifted % len(MARKERS)]


def plain(text: str, longest: int = LONGEST_TEXT) -> str:
    """A name as matplotlib shows it literally: ``$`` starts no formula, and ``_`` does not hide it from a legend."""
    shown = printable(text)
    shown = shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
    shown = f" {shown}" if shown.startswith("_") else shown
    return shown.replace("$", r"\$")


NAMES = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)", "nsd": "normalized surface Dice"}
