"""Which methods there are, and which installed trainers use them."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import entry_points

from rich.markup import escape
from rich.table import Table

from nnunet_dg.method import Method
from nnunet_dg.names import printable
from nnunet_dg.training.catalog import METHODS


def trainers_by_method() -> dict[type[Method], list[str]]:
    """The methods of the catalog, then those of other packages, each with the declared trainers that list it.

    A trainer that cannot be imported is left out; ``nnunet-dg doctor`` says why.
    """
    trainers: dict[type[Method], list[str]] = defaultdict(list, {method: [] for method in METHODS.values()})
    for entry_point in sorted(entry_points(group="nnunetv2.trainers"), key=lambda e: e.name):
        try:
            trainer = entry_point.load()
        except Exception:  # noqa: S112, any package's module may raise anything
            continue
        for method in getattr(trainer, "methods", ()):
            if isinstance(method, Method):
                trainers[type(method)].append(entry_point.name)
    return dict(trainers)


def methods_table() -> Table:
    """A row per method: its section in the plans, its paper, where it acts, and its trainers."""
    table = Table(title="methods", show_lines=True)
    table.add_column("settings", no_wrap=True)
    table.add_column("paper", overflow="fold")
    table.add_column("acts on")
    table.add_column("trainers", overflow="fold")
    for method, trainers in trainers_by_method().items():
        paper = f"{method.paper.title} ({method.paper.venue}, {method.paper.year})\n{method.paper.url}"
        cells = (method.key, paper, method.slot, "\n".join(map(printable, trainers)))
        table.add_row(*map(escape, cells))
    return table
