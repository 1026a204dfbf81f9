"""``nnunet-dg stress`` and ``stability``: the effect of simulated shifts on models and on features."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunet_dg.cli.arguments import CASE_OPTIONS, Commands, add_cases, cases_of, in_options, positive
from nnunet_dg.errors import SettingsError


def add_stress(commands: Commands) -> None:
    """Add ``nnunet-dg stress``."""
    stress = commands.add_parser(
        "stress",
        help="measure trained models on corrupted images and with noise on their weights",
        description="Applies gamma, bias field, noise, blur, low resolution, inversion and Gibbs ringing of increasing "
        "strength to raw images, and Gaussian noise to the trained weights, and predicts as nnU-Net does. Writes "
        "stress.csv and stress.png. Measurements are saved: the same command resumes after an interruption.",
    )
    stress.add_argument(
        "models", metavar="[NAME=]MODEL", nargs="+", help="results folders of nnU-Net, TRAINER__PLANS__CONFIGURATION"
    )
    add_cases(stress)
    stress.add_argument(
        "--kinds", metavar="KIND", nargs="+", help="kinds of change, for example gamma inversion (default: all)"
    )
    stress.add_argument(
        "--draws", metavar="N", type=positive, default=5, help="draws of weight noise (default: %(default)s)"
    )
    stress.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    stress.set_defaults(run=_stress)


def _stress(arguments: argparse.Namespace) -> int:
    from nnunet_dg.reporting.sources import Source
    from nnunet_dg.robustness.stress import KINDS, overview, stress

    a = arguments
    sources = [Source.parse(text) for text in a.models]
    with in_options(CASE_OPTIONS | {"kinds": "--kinds"}):
        table = stress(sources, a.o, kinds=a.kinds or KINDS, draws=a.draws, seed=a.seed, **cases_of(a))
    print(overview(table).to_string(index=False))
    print(f"Written: {a.o / 'stress.csv'} and stress.png")
    return 0


def add_stability(commands: Commands) -> None:
    """Add ``nnunet-dg stability``."""
    stability = commands.add_parser(
        "stability", help="measure the stability of features across contrasts, and what a model relies on"
    )
    actions = stability.add_subparsers(title="actions", required=True, metavar="ACTION")
    features = actions.add_parser(
        "features",
        help="compare an extractor's features of images with different contrasts",
        description="Measures linear CKA between an extractor's features of co-registered images with different "
        "contrasts, and with increasing gamma, next to that of the image intensity. Tells features of the "
        "surroundings of a voxel from features of its place in the patch: images are compared in patches cut from "
        "different places, and with unrelated noise in the same place. Draws the features as colors.",
    )
    features.add_argument(
        "images", metavar="[NAME=]IMAGE", nargs="+", help="co-registered images of one subject, on one grid"
    )
    features.add_argument(
        "-x", metavar="EXTRACTOR", nargs="+", default=["mind"],
        help="mind, synthetic, anatomix, anatomix-dev=WEIGHTS, nnunet=WEIGHTS or synthetic=WEIGHTS (default: mind)",
    )  # fmt: skip
    features.add_argument("-o", metavar="OUT", type=Path, required=True, help="output folder")
    features.add_argument(
        "--patch", metavar="N", nargs="+", type=positive,
        help="size of the central patch in voxels, one number per axis, slices first (default: 128 each)",
    )  # fmt: skip
    features.set_defaults(run=_stability_features)
    reliance = actions.add_parser(
        "reliance",
        help="measure Dice of a DropGen model with the image, or the features, zeroed",
        description="Predicts with a trained DropGen model normally, without the image, and without the features.",
    )
    reliance.add_argument("model", metavar="MODEL", type=Path, help="results folder, TRAINER__PLANS__CONFIGURATION")
    add_cases(reliance)
    reliance.set_defaults(run=_stability_reliance)


def _stability_features(arguments: argparse.Namespace) -> int:
    from nnunet_dg.extractors import build_extractor
    from nnunet_dg.robustness.feature_stability import dimensions, stability

    a = arguments
    images = _named(a.images)
    if len(images) < len(a.images):
        raise SettingsError("Two images have the same name. Name them differently: NAME=IMAGE.")
    weights = {name: path or None for name, _, path in (text.partition("=") for text in a.x)}
    if len(weights) < len(a.x):
        raise SettingsError(f"-x names an extractor twice: {' '.join(a.x)}. Compare different weights in two calls.")
    dims = dimensions(next(iter(images.values())))
    extractors = {n: build_extractor(n, weights=w, spatial_dims=dims) for n, w in weights.items()}
    with in_options({"patch": "--patch"}):
        print(stability(images, extractors, a.patch, a.o).to_string(index=False, float_format="{:.3f}".format))
    print(f"Written: {a.o / 'contrasts.csv'}, images.csv, gamma.csv, and figures")
    return 0


def _named(texts: Sequence[str]) -> dict[str, Path]:
    """Paths by name, from ``NAME=PATH``, or from a path, which is named after its file."""
    from nnunet_dg.reporting.sources import Source

    sources = [Source.parse(text) for text in texts]
    named = {source.name or source.path.name.split(".")[0]: source.path for source in sources}
    if odd := [name for name in named if not name.isprintable()]:
        raise SettingsError(f"{odd[0]!r} has control characters. Give the image another name: NAME=IMAGE.")
    return named


def _stability_reliance(arguments: argparse.Namespace) -> int:
    from nnunet_dg.robustness.reliance import reliance

    a = arguments
    with in_options(CASE_OPTIONS):
        table = reliance(a.model, a.o, **cases_of(a))
    means = table.groupby("zeroed", sort=False)["dice"].mean().mul(100).round(1)
    print(means.rename("Dice (%)").reset_index().to_string(index=False))
    print(f"Written: {a.o / 'reliance.csv'}")
    return 0
