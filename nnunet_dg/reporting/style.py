"""Colors, lines and markers that can be told apart by color-blind readers and in grayscale, and text in figures."""

from __future__ import annotations

from nnunet_dg.names import printable

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")  # Okabe and Ito
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LONGEST_TEXT = 60  # maximum number of characters of a name in a figure


def style_of(number: int) -> tuple[str, str, str]:
    """Color, line and marker for ``number``. Number 8 has the color of number 0, but another line and marker."""
    shifted = number + number // len(COLORS)
    return COLORS[number % len(COLORS)], LINES[shifted % len(LINES)], MARKERS[shifted % len(MARKERS)]


def plain(text: str, longest: int = LONGEST_TEXT) -> str:
    """Escape a name for matplotlib, where ``$`` starts a formula and a leading ``_`` hides an entry from the legend."""
    shown = printable(text)
    shown = shown if len(shown) <= longest else f"{shown[: longest - 3]}..."
    shown = f" {shown}" if shown.startswith("_") else shown
    return shown.replace("$", r"\$")


NAMES = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)", "nsd": "normalized surface Dice"}
