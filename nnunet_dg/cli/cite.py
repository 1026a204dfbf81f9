"""``nnunet-dg cite``: the BibTeX entries of what a trainer uses."""

from __future__ import annotations

import argparse

from nnunet_dg.cli.arguments import Commands


def add_cite(commands: Commands) -> None:
    """``nnunet-dg cite``."""
    cite = commands.add_parser(
        "cite",
        help="BibTeX entries of nnU-Net and of the methods of a trainer",
        description="Prints the BibTeX entries of nnU-Net, of the methods of a trainer, and of the extractors that the "
        "trainer names. Settings in the plans are not looked at.",
    )
    cite.add_argument("trainer", metavar="TRAINER", help="any trainer of nnU-Net's, for example nnUNetTrainerDropGen")
    cite.add_argument(
        "--adapt", choices=("tent", "sfb", "alpha"), nargs="+", default=[],
        help="methods of nnunet-dg predict that are cited as well",
    )  # fmt: skip
    cite.set_defaults(run=_cite)


def _cite(arguments: argparse.Namespace) -> int:
    from nnunet_dg.adaptation.settings import METHODS
    from nnunet_dg.citations import papers_of
    from nnunet_dg.host import trainer_class

    methods = getattr(trainer_class(arguments.trainer), "methods", ())
    papers = papers_of(methods) | {name: METHODS[name].paper for name in arguments.adapt}
    print("\n\n".join(paper.bibtex(key) for key, paper in papers.items()))
    return 0
