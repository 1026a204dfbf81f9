"""``nnunet-dg methods``: the methods and the trainers that use them."""

from __future__ import annotations

import argparse

from nnunet_dg.cli.arguments import Commands


def add_methods(commands: Commands) -> None:
    """``nnunet-dg methods``."""
    methods = commands.add_parser(
        "methods",
        help="list the methods and the trainers that use them",
        description="Lists the methods, their papers, and the trainers of all installed packages that use them.",
    )
    methods.set_defaults(run=_methods)


def _methods(_: argparse.Namespace) -> int:
    from nnunet_dg.names import printable_lines
    from nnunet_dg.training.overview import overview

    print(printable_lines(overview()))
    return 0
