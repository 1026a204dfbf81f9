"""``nnunet-dg weights`` and ``export``: what comes in from elsewhere, and what goes out."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_dg.cli.arguments import Commands, fold, in_options


def add_weights(commands: Commands) -> None:
    """``nnunet-dg weights``."""
    weights = commands.add_parser("weights", help="list, fetch or install the weights of extractors and teachers")
    weights.set_defaults(run=_weights_list)
    actions = weights.add_subparsers(title="actions", metavar="ACTION", description="default: list")
    listing = actions.add_parser("list", help="which weights are on this machine, and where")
    listing.set_defaults(run=_weights_list)
    fetch = actions.add_parser("fetch", help="download and verify (on a machine with internet)")
    fetch.add_argument("name", help="anatomix, or a ViT of timm, for example samvit_base_patch16.sa1b")
    fetch.set_defaults(run=_weights_fetch)
    install = actions.add_parser("install", help="put a local file where trainings look for it")
    install.add_argument("name", help="anatomix (a ViT's file goes into the plans, as TinyMIG's setting weights)")
    install.add_argument("file", type=Path, help="the file, as published")
    install.add_argument(
        "--unpublished", action="store_true", help="accept a file with the right layout that is not the published one"
    )
    install.set_defaults(run=_weights_install)


def _weights_list(_: argparse.Namespace) -> int:
    from rich.console import Console

    from nnunet_dg.doctor.installation import weights_table

    Console().print(weights_table())
    return 0


def _is_vit(name: str) -> bool:
    from nnunet_dg.extractors import vit, weights

    return name not in weights.PUBLISHED and vit.is_published(name)  # the latter imports timm


def _weights_fetch(arguments: argparse.Namespace) -> int:
    from nnunet_dg.extractors import vit, weights

    if _is_vit(arguments.name):
        print(f"Here: {vit.locate(arguments.name)}")
        return 0
    published = weights.published(arguments.name)
    if weights.state(published) == "published file":
        print(f"Already here: {weights.cached_path(published)}")
    else:
        print(f"Installed: {weights.fetch(published)}")
    return 0


def _weights_install(arguments: argparse.Namespace) -> int:
    from nnunet_dg.extractors import weights

    if _is_vit(arguments.name):
        raise weights.WeightsError(
            f"install takes {', '.join(weights.PUBLISHED)}; got {arguments.name!r}. A ViT's file is used where it is: "
            f'set weights in plans["nnunet_dg"]["tinymig"] to it.'
        )
    installed = weights.install(weights.published(arguments.name), arguments.file, unpublished=arguments.unpublished)
    print(f"Installed: {installed}")
    return 0


def add_export(commands: Commands) -> None:
    """``nnunet-dg export``."""
    export = commands.add_parser(
        "export",
        help="a model for people who have only nnU-Net",
        description="Writes the model of a trainer whose network is nnU-Net's own (nnUNetTrainerSgCG, "
        "nnUNetTrainerTinyMIG) as one of plain nnUNetTrainer, after checking that both give the same logits. Options "
        "are those of nnUNetv2_export_model_to_zip.",
    )
    export.add_argument("-d", metavar="ID", required=True, help="dataset name or number")
    export.add_argument("-c", metavar="CONFIG", required=True, help="configuration, for example 3d_fullres")
    export.add_argument("-tr", metavar="TRAINER", required=True, help="the trainer that trained the model")
    export.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    export.add_argument("-f", metavar="FOLD", nargs="+", default=range(5), type=fold, help="default: 0 1 2 3 4")
    export.add_argument("-chk", metavar="FILE", default="checkpoint_final.pth", help="default: %(default)s")
    export.add_argument(
        "-o", metavar="OUT", type=Path, required=True,
        help="a folder, for nnUNetv2_predict_from_modelfolder -m, or a file .zip, for "
        "nnUNetv2_install_pretrained_model_from_zip (which writes over a nnUNetTrainer model of the same plans)",
    )  # fmt: skip
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from nnunet_dg.export import export

    a = arguments
    options = {"dataset": "-d", "configuration": "-c", "trainer": "-tr", "plans": "-p", "folds": "-f"}
    with in_options(options | {"checkpoint": "-chk"}):
        print(f"Exported: {export(a.d, a.c, a.tr, a.o, a.p, tuple(a.f), a.chk)}")
    return 0
