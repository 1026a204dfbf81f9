"""An overview of the methods and of the installed trainers that use them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

from nnunet_dg.method import Method
from nnunet_dg.training.catalog import METHODS


def trainers_by_method() -> dict[type[Method], list[str]]:
    """The methods of the catalog, then those of other packages, each with the installed trainers that list it.

    A trainer that cannot be imported is left out; ``nnunet-dg doctor`` says why.
    """
    trainers: dict[type[Method], list[str]] = {method: [] for method in METHODS.values()}
    for name, method in _listed():
        trainers.setdefault(type(method), []).append(name)
    return trainers


def default_methods() -> list[Method]:
    """The methods of the catalog with their default settings, then those of other packages as a trainer lists them."""
    defaults: dict[type[Method], Method] = {method: method() for method in METHODS.values()}
    for _, method in _listed():
        defaults.setdefault(type(method), method)
    return list(defaults.values())


def _listed() -> Iterator[tuple[str, Method]]:
    """The installed trainers by name, with each method that they list."""
    for entry_point in sorted(entry_points(group="nnunetv2.trainers"), key=lambda e: e.name):
        try:
            trainer = entry_point.load()
        except (Exception, SystemExit):  # noqa: S112, a module of another package may raise any exception
            continue
        for method in getattr(trainer, "methods", ()):
            if isinstance(method, Method):
                yield entry_point.name, method


def overview() -> str:
    """One paragraph per method: its section in the plans, what it acts on, its paper and its trainers."""
    return "\n\n".join(_paragraph(*entry) for entry in trainers_by_method().items())


def _paragraph(method: type[Method], trainers: list[str]) -> str:
    paper = method.paper
    lines = [f"{method.key} ({method.slot})" if method.slot else method.key]
    lines += [f"  {paper.title}", f"  {paper.authors}. {paper.venue}, {paper.year}. {paper.url}"]
    return "\n".join([*lines, *(f"  -tr {name}" for name in trainers)])
