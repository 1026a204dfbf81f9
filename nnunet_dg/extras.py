"""Optional dependencies: the packages that each extra installs, and the error if one is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from nnunet_dg.errors import ExtraError

EXTRAS = {
    "report": ("monai", "statsmodels", "tabulate", "jinja2"),
    "teachers": ("timm", "safetensors", "huggingface_hub"),
    "benchmark": ("snakemake", "yaml"),
}
"""The packages of each extra in ``pyproject.toml``, by the names under which Python imports them."""


OLDEST_PYTHON = {"benchmark": (3, 11)}
"""The oldest Python that the packages of an extra are released for, if it is newer than this package's own."""


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed.

    Args:
        extra: One of `EXTRAS`.
    """
    return [package for package in EXTRAS[extra] if find_spec(package) is None]


def require(extra: str, purpose: str) -> None:
    """Check that an extra is installed. Call this before the packages are imported, and before long computations.

    Args:
        extra: One of `EXTRAS`.
        purpose: What needs the packages, as the subject of the message: "The report".

    Raises:
        ExtraError: A package of the extra is not installed; the message has the command that installs it, or names the
            oldest Python that the package is released for.
    """
    absent, oldest = missing(extra), OLDEST_PYTHON.get(extra, (3, 10))
    if absent and sys.version_info < oldest:
        raise ExtraError(
            f"{purpose} needs {absent[0]}, which has no release for Python {'.'.join(map(str, sys.version_info[:2]))}. "
            f'Install "nnunet-dg[{extra}]" with Python {".".join(map(str, oldest))} or newer.'
        )
    if absent:
        raise ExtraError(
            f"{purpose} needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed. "
            f'Install the extra "{extra}": pip install "nnunet-dg[{extra}]"'
        )
