"""Extractors by name: what users write into the plans, and what `build_extractor` makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nnunet_dg.errors import DimensionError, SettingsError
from nnunet_dg.extractors import weights as room
from nnunet_dg.extractors.anatomix import LAYERS, VARIANTS, Anatomix
from nnunet_dg.extractors.base import NORMALIZATIONS, SCALINGS, FrozenExtractor
from nnunet_dg.extractors.mind import MIND
from nnunet_dg.extractors.nnunet_folder import NNUNetFeatures, read_architecture

EXTRACTORS = (*VARIANTS, "mind", "nnunet")
T = TypeVar("T")  # the settings of a method
NEEDS = {
    "anatomix-dev": f"{room.SET_WEIGHTS} to the file anatomix-dev.pth that anatomix' authors published in July 2026, "
    "on the Hugging Face hub as neeldey/anatomix",
    "nnunet": f"{room.SET_WEIGHTS} to the folder of a trained model, which holds plans.json and "
    "fold_X/checkpoint_final.pth",
}


def build_extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    layer: str = "penultimate",
    scaling: str = "minmax",
    spatial_dims: int | None = None,
    normalize: str | None = None,
) -> FrozenExtractor:
    """A frozen extractor, ready to compute: ``(B, 1, *spatial)``, any range -> ``(B, d, *spatial)``.

    Args:
        name: one of `EXTRACTORS`: ``"anatomix"`` (published as anatomix.pth), ``"anatomix-dev"`` (anatomix-dev.pth of
            July 2026), ``"mind"`` (no weights), ``"nnunet"`` (the folder of any trained nnU-Net).
        weights: a checkpoint file in the published layout, or for `nnunet` a trained model folder; None: the cached or
            fetched file.
        layer: ``"penultimate"`` or ``"final"``; extractors without layers take the default only.
        scaling: what the extractor's network gets: the sample ``"minmax"``-ed (DropGen's choice), or its ``"zscore"``,
            as most nnU-Nets are trained.
        spatial_dims: 2 or 3; None: 3, or what the model folder has. MIND works in both, anatomix in 3-D only.
        normalize: what is done to the features: ``"instance"``, zero mean and unit variance of each channel
            (DropGen's), or ``"voxelwise"``, unit norm over the channels of each voxel. None: what the extractor's
            authors ask for, voxelwise for anatomix-dev and instance for the others.

    Raises:
        SettingsError: unknown name, layer, scaling or normalization; as `DimensionError` (also a NotImplementedError)
            where the extractor does not exist for ``spatial_dims``.
        WeightsError: the weights are missing, cannot be fetched, or are not what they should be.
    """
    architecture = architecture_of(name, weights)
    extractor = create_extractor(
        name,
        layer=layer,
        scaling=scaling,
        spatial_dims=spatial_dims,
        architecture=architecture,
        normalize=normalize,
    )
    load_weights(extractor, name, weights)
    return extractor


def default_normalization(name: str) -> str:
    """How an extractor's features are normalized unless ``normalize`` is set: one of `NORMALIZATIONS`."""
    return VARIANTS[name].normalize if name in VARIANTS else FrozenExtractor.normalize


def architecture_of(name: str, weights: str | Path | None) -> dict[str, Any] | None:
    """What has to be known of the model folder ``weights`` to build it elsewhere; None if ``name`` is not `nnunet`.

    Raises:
        WeightsError: there is no folder, or it is not a trained model of nnU-Net.
    """
    if name != "nnunet":
        return None
    if weights is None:
        raise room.WeightsError(f"extractor 'nnunet' comes without weights: {NEEDS[name]}.")
    try:
        return read_architecture(room.expanded(weights))
    except ValueError as error:  # DataError: of the same family, and what callers of extractors expect
        raise room.WeightsError(str(error)) from error


def with_architecture(settings: T, name: str, earlier: T | None = None) -> T:
    """Settings with the architecture of a model folder beside its path: only a new training needs the folder.

    Args:
        settings: a dataclass with ``weights`` and ``architecture``.
        name: of the extractor; all but `nnunet` need nothing.
        earlier: completed settings of the same training; theirs is taken where the folder is gone.

    Raises:
        WeightsError: `nnunet` without the folder of a trained model in ``weights``.
    """
    given: Any = settings
    if given.architecture is not None or name != "nnunet":
        return settings
    gone = given.weights is not None and not room.expanded(given.weights).exists()
    then: Any = earlier
    if gone and then is not None and then.weights == given.weights:
        return replace(given, architecture=then.architecture)
    return replace(given, architecture=architecture_of(name, given.weights))


def create_extractor(
    name: str,
    *,
    layer: str = "penultimate",
    scaling: str = "minmax",
    spatial_dims: int | None = None,
    architecture: dict[str, Any] | None = None,
    normalize: str | None = None,
) -> FrozenExtractor:
    """The extractor without its weights, to be filled by `load_weights` or from a checkpoint.

    Args:
        name: see `build_extractor`, as for the other arguments.
        layer: see there.
        scaling: see there.
        spatial_dims: see there.
        architecture: for `nnunet`, see `architecture_of`.
        normalize: see there.

    Raises:
        SettingsError: as `build_extractor`.
    """
    if name not in EXTRACTORS:
        raise SettingsError(f"extractor must be one of {', '.join(EXTRACTORS)}; got {name!r}.")
    if layer not in LAYERS:
        raise SettingsError(f"layer must be one of {', '.join(LAYERS)}; got {layer!r}.")
    if scaling not in SCALINGS:
        raise SettingsError(f"scaling must be one of {', '.join(SCALINGS)}; got {scaling!r}.")
    if normalize is not None and normalize not in NORMALIZATIONS:
        raise SettingsError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, or None; got {normalize!r}.")
    if name not in VARIANTS and layer != "penultimate":
        raise SettingsError(f"extractor '{name}' has no layers: leave layer at 'penultimate'; got {layer!r}.")
    extractor: FrozenExtractor
    if name == "mind":
        extractor = MIND(3 if spatial_dims is None else spatial_dims)
    elif name == "nnunet":
        if architecture is None:
            raise SettingsError(f"extractor 'nnunet' has no architecture yet: {NEEDS[name]}.")
        extractor = NNUNetFeatures(architecture)
    else:
        extractor = Anatomix(name, layer)
    if spatial_dims not in (None, *extractor.accepted_dims):
        only = " and ".join(f"{n}-D" for n in extractor.accepted_dims)
        raise DimensionError(
            f"extractor '{name}' is {only} only, asked for {spatial_dims}-D; 'mind' works in 2-D and 3-D, "
            f"'nnunet' with the folder of a {spatial_dims}-D model."
        )
    extractor.scaling = scaling
    extractor.normalize = normalize or extractor.normalize
    return extractor


def _other_way(name: str) -> str:
    if name in NEEDS:
        return f"To do: {NEEDS[name]}."
    return f"To do: {room.SET_WEIGHTS} to a file in the published layout, or leave it out for the published file."


def load_weights(extractor: FrozenExtractor, name: str, weights: str | Path | None = None) -> Path | None:
    """Fill an extractor made by `create_extractor`; returns the file used, None for an extractor without weights.

    Raises:
        SettingsError: weights given for an extractor that has none.
        WeightsError: the file is missing, cannot be fetched, or is not what it should be.
    """
    if not isinstance(extractor, (Anatomix, NNUNetFeatures)):
        if weights is not None:
            raise SettingsError(f"extractor '{name}' has no weights: leave weights unset; got {str(weights)!r}.")
        return None
    if weights is not None:
        path = room.expanded(weights)
        if not path.exists():
            raise room.WeightsError(f"There is no file {path}, which the setting weights names. {_other_way(name)}")
    elif name in room.PUBLISHED:
        path = room.locate(room.PUBLISHED[name])
    else:
        raise room.WeightsError(f"The weights of '{name}' are not fetched by this version: {NEEDS[name]}.")
    try:
        if isinstance(extractor, NNUNetFeatures):
            return extractor.load_folder(path)
        extractor.load_published(room.read(path))
    except ValueError as error:
        raise room.WeightsError(f"{path} does not fit extractor '{name}': {error}") from error
    return path
