"""``nnunet-dg weights`` and ``export``: getting weights, and sharing models."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_dg.cli.arguments import Commands, fold, in_options


def add_weights(commands: Commands) -> None:
    """Add ``nnunet-dg weights``."""
    weights = commands.add_parser("weights", help="list, fetch or install the weights of extractors and teachers")
    weights.set_defaults(run=_weights_list)
    actions = weights.add_subparsers(title="actions", metavar="ACTION", description="default: list")
    listing = actions.add_parser("list", help="list the weights and where they are on this machine")
    listing.set_defaults(run=_weights_list)
    fetch = actions.add_parser("fetch", help="download and verify weights (on a machine with internet access)")
    fetch.add_argument("name", help="anatomix, or a ViT of timm, for example samvit_base_patch16.sa1b")
    fetch.set_defaults(run=_weights_fetch)
    install = actions.add_parser("install", help="copy a local file to the folder where trainings expect it")
    install.add_argument("name", help="anatomix (for a ViT, set its file as weights in the plans, for TinyMIG)")
    install.add_argument("file", type=Path, help="the published file")
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

    return name not in weights.PUBLISHED and vit.is_published(name)  # in this order, since the latter imports timm


def _weights_fetch(arguments: argparse.Namespace) -> int:
    from nnunet_dg.extractors import vit, weights

    if _is_vit(arguments.name):
        print(f"Available: {vit.locate(arguments.name)}")
        return 0
    published = weights.published(arguments.name)
    if weights.state(published) == "published file":
        print(f"Already available: {weights.cached_path(published)}")
    else:
        print(f"Installed: {weights.fetch(published)}")
    return 0


def _weights_install(arguments: argparse.Namespace) -> int:
    from nnunet_dg.extractors import weights

    if _is_vit(arguments.name):
        raise weights.WeightsError(
            f"Only {', '.join(weights.PUBLISHED)} can be installed; got {arguments.name!r}. The file of a ViT needs no "
            f'installation: set weights in plans["nnunet_dg"]["tinymig"] to its path.'
        )
    with in_options({"unpublished": "--unpublished"}):
        published = weights.published(arguments.name)
        print(f"Installed: {weights.install(published, arguments.file, unpublished=arguments.unpublished)}")
    return 0


def add_export(commands: Commands) -> None:
    """Add ``nnunet-dg export``."""
    export = commands.add_parser(
        "export",
        help="convert a trained model for people who have only nnU-Net",
        description="Writes a model whose network is nnU-Net's own (nnUNetTrainerSgCG, nnUNetTrainerTinyMIG) as a "
        "model of plain nnUNetTrainer, after checking that both give the same logits. The options are those of "
        "nnUNetv2_export_model_to_zip.",
    )
    export.add_argument("-d", metavar="ID", required=True, help="dataset name or number")
    export.add_argument("-c", metavar="CONFIG", required=True, help="configuration, for example 3d_fullres")
    export.add_argument("-tr", metavar="TRAINER", required=True, help="the trainer that trained the model")
    export.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    export.add_argument("-f", metavar="FOLD", nargs="+", default=range(5), type=fold, help="folds (default: 0 1 2 3 4)")
    export.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint (default: %(default)s)"
    )
    export.add_argument(
        "-o", metavar="OUT", type=Path, required=True,
        help="output: a folder, for nnUNetv2_predict_from_modelfolder -m, or a .zip file, for "
        "nnUNetv2_install_pretrained_model_from_zip (which replaces an nnUNetTrainer model with the same plans)",
    )  # fmt: skip
    export.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from nnunet_dg.export import export

    a = arguments
    options = {"dataset": "-d", "configuration": "-c", "trainer": "-tr", "plans": "-p", "folds": "-f"}
    with in_options(options | {"checkpoint": "-chk"}):
        print(f"Exported: {export(a.d, a.c, a.tr, a.o, a.p, tuple(a.f), a.chk)}")
    return 0
