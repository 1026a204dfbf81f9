"""Colours, lines and markers that colour-blind people tell apart, and everybody on a grey print."""

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")  # Okabe and Ito
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def style_of(number: int) -> tuple[str, str, str]:
    """Colour, line and marker of the trainer ``number``; the ninth has the first one's colour with another marker."""
    shifted = number + number // len(COLORS)
    return COLORS[number % len(COLORS)], LINES[shifted % len(LINES)], MARKERS[shifted % len(MARKERS)]


NAMES = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "assd_mm": "ASSD (mm)", "nsd": "normalized surface Dice"}
