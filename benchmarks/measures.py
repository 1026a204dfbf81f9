"""Figures with their bounds, and the table that shows them."""

import argparse
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Measure:
    """One figure. Without a bound, it is only reported."""

    name: str
    value: float
    unit: str = "times"
    bound: float | None = None

    @property
    def exceeds(self) -> bool:
        return self.bound is not None and not self.value <= self.bound

    def row(self) -> str:
        bound = "" if self.bound is None else f"at most {self.bound:g}"
        return f"| {self.name} | {self.value:.2f} {self.unit} | {bound} | {'above' if self.exceeds else ''} |"


def machine() -> str:
    """The machine and the versions, to be printed above a table."""
    packages = ("nnunet-dg", "nnunetv2", "torch", "monai")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{platform.machine()}, {os.cpu_count()} CPUs{load}; Python {platform.python_version()}, {versions}"


def print_table(measures: Iterable[Measure]) -> None:
    print("| measure | value | bound | |\n| --- | --- | --- | --- |")
    for measure in measures:
        print(measure.row(), flush=True)


def arguments_of(doc: str | None) -> argparse.Namespace:
    """The options that every benchmark with bounds has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test with small sizes, whose figures mean little")
    parser.add_argument("--json", type=Path, help="file to which the figures are written as well")
    return parser.parse_args()


def show(measures: list[Measure], arguments: argparse.Namespace) -> None:
    """Print the table, and write the figures to a file if one was given. A smoke test is not held to the bounds."""
    if arguments.quick:
        measures = [replace(measure, bound=None) for measure in measures]
    print(f"\n{machine()}\n")
    print_table(measures)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(measure) for measure in measures], indent=1))


def read(path: Path) -> list[Measure]:
    return [Measure(**content) for content in json.loads(path.read_text())]
