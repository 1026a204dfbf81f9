"""Optional dependencies: the packages that each extra installs, and the error if one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from nnunet_dg.errors import ExtraError

EXTRAS = {
    "report": ("monai", "statsmodels", "tabulate", "jinja2"),
    "teachers": ("timm", "safetensors", "huggingface_hub"),
    "benchmark": ("snakemake", "yaml"),
}
"""The packages of each extra in ``pyproject.toml``, by the names under which Python imports them."""


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
        ExtraError: A package of the extra is not installed; the message has the command that installs it.
    """
    if absent := missing(extra):
        raise ExtraError(
            f"{purpose} needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed. "
            f'Install the extra "{extra}": pip install "nnunet-dg[{extra}]"'
        )
