"""Creating extractors by the names that users write in the plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nnunet_dg.errors import DimensionError, SettingsError
from nnunet_dg.extractors import weights as weight_files
from nnunet_dg.extractors.anatomix import LAYERS, VARIANTS, Anatomix
from nnunet_dg.extractors.anatomix_unet import AnatomixUNet
from nnunet_dg.extractors.base import NORMALIZATIONS, SCALINGS, FrozenExtractor
from nnunet_dg.extractors.mind import MIND
from nnunet_dg.extractors.nnunet_folder import NNUNetFeatures, read_architecture
from nnunet_dg.extractors.synthetic import Synthetic, included

EXTRACTORS = (*VARIANTS, "mind", "nnunet", "synthetic")
T = TypeVar("T")  # the settings of a method
NEEDS = {
    "anatomix-dev": f"{weight_files.SET_WEIGHTS} to the file anatomix-dev.pth that the authors of anatomix published "
    "in July 2026 on the Hugging Face hub, as neeldey/anatomix",
    "nnunet": f"{weight_files.SET_WEIGHTS} to the folder of a trained model, which contains plans.json and "
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
    """A frozen extractor with its weights: ``(B, 1, *spatial)``, any range -> ``(B, d, *spatial)``.

    Args:
        name: One of `EXTRACTORS`: ``"anatomix"`` (published as anatomix.pth), ``"anatomix-dev"`` (anatomix-dev.pth of
            July 2026), ``"mind"`` (no weights), ``"nnunet"`` (the folder of any trained nnU-Net), ``"synthetic"``
            (trained on generated volumes).
        weights: Checkpoint file in the published layout, for ``nnunet`` the folder of a trained model, or for
            ``synthetic`` a file of ``nnunet-dg pretrain synthetic``; by default the published file, fetched if it is
            not in the cache, or the one that this package includes.
        layer: ``"penultimate"`` or ``"final"``. Extractors without layers accept only the default.
        scaling: Scaling of the image before the extractor's network: ``"minmax"``, as in DropGen, or ``"zscore"``, with
            which most nnU-Nets are trained.
        spatial_dims: 2 or 3; by default 3, or the number of the model folder. MIND and synthetic work in both,
            anatomix only in 3-D.
        normalize: Normalization of the features: ``"instance"``, zero mean and unit variance of each channel, as in
            DropGen, or ``"voxelwise"``, unit norm over the channels of each voxel. By default the choice of the
            extractor's authors: voxelwise for anatomix-dev and instance for the others.

    Raises:
        SettingsError: Unknown name, layer, scaling or normalization. If the extractor is not available for
            ``spatial_dims``, it is a `DimensionError`, which is also a NotImplementedError.
        WeightsError: The weights are missing, cannot be fetched, or are not the expected ones.
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
    """The default of ``normalize`` for an extractor, one of `NORMALIZATIONS`."""
    return VARIANTS[name].normalize if name in VARIANTS else FrozenExtractor.normalize


def architecture_of(name: str, weights: str | Path | None) -> dict[str, Any] | None:
    """The architecture in a model folder, needed to build the extractor without that folder.

    Args:
        name: Name of the extractor.
        weights: Folder of a trained model.

    Returns:
        The architecture for `create_extractor`; None for extractors other than ``nnunet``.

    Raises:
        WeightsError: There is no folder, or it is not a trained model of nnU-Net.
    """
    if name != "nnunet":
        return None
    if weights is None:
        raise weight_files.WeightsError(f"Extractor 'nnunet' has no default weights: {NEEDS[name]}.")
    try:
        return read_architecture(weight_files.expanded(weights))
    except ValueError as error:  # a DataError; callers of extractors expect a WeightsError
        raise weight_files.WeightsError(str(error)) from error


def with_architecture(settings: T, name: str, earlier: T | None = None) -> T:
    """Settings completed with the architecture of a model folder, so that only a new training needs the folder.

    Args:
        settings: Dataclass with ``weights`` and ``architecture``.
        name: Name of the extractor. Settings of extractors other than ``nnunet`` are returned unchanged.
        earlier: Completed settings of the same training. Their architecture is used if the folder no longer exists.

    Raises:
        WeightsError: The extractor is ``nnunet``, but ``weights`` is not the folder of a trained model.
    """
    given: Any = settings
    if given.architecture is not None or name != "nnunet":
        return settings
    gone = given.weights is not None and not weight_files.expanded(given.weights).exists()
    completed: Any = earlier
    if gone and completed is not None and completed.weights == given.weights:
        return replace(given, architecture=completed.architecture)
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
    """An extractor without weights, to be filled by `load_weights` or from a checkpoint.

    Args:
        name, layer, scaling, spatial_dims, normalize: See `build_extractor`.
        architecture: Architecture for ``nnunet``, see `architecture_of`.

    Raises:
        SettingsError: See `build_extractor`.
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
        raise SettingsError(f"Extractor '{name}' has no layers: leave layer at 'penultimate'; got {layer!r}.")
    extractor: FrozenExtractor
    if name == "mind":
        extractor = MIND(3 if spatial_dims is None else spatial_dims)
    elif name == "nnunet":
        if architecture is None:
            raise SettingsError(f"Extractor 'nnunet' has no architecture yet: {NEEDS[name]}.")
        extractor = NNUNetFeatures(architecture)
    elif name == "synthetic":
        extractor = Synthetic(3 if spatial_dims is None else spatial_dims)
    else:
        extractor = Anatomix(name, layer)
    if spatial_dims not in (None, *extractor.accepted_dims):
        only = " and ".join(f"{n}-D" for n in extractor.accepted_dims)
        raise DimensionError(
            f"Extractor '{name}' is {only} only, but {spatial_dims}-D is needed. 'mind' works in 2-D and 3-D, 'nnunet' "
            f"with the folder of a {spatial_dims}-D model."
        )
    extractor.scaling = scaling
    extractor.normalize = normalize or extractor.normalize
    return extractor


def _other_way(name: str) -> str:
    if name in NEEDS:
        return f"To do: {NEEDS[name]}."
    if name == "synthetic":
        return f"To do: {weight_files.SET_WEIGHTS} to a file that nnunet-dg pretrain synthetic has written."
    return (
        f"To do: {weight_files.SET_WEIGHTS} to a file in the published layout, or unset it to use the published file."
    )


def load_weights(
    extractor: FrozenExtractor | AnatomixUNet, name: str, weights: str | Path | None = None
) -> Path | None:
    """Load the weights of an extractor made by `create_extractor`, or of an `AnatomixUNet`.

    Args:
        extractor: Extractor to fill.
        name: Name of the extractor.
        weights: File or folder, see `build_extractor`.

    Returns:
        The file used; None for an extractor without weights.

    Raises:
        SettingsError: Weights are given for an extractor that has none.
        WeightsError: The file is missing, cannot be fetched, or does not contain the expected weights.
    """
    if not isinstance(extractor, (Anatomix, AnatomixUNet, NNUNetFeatures, Synthetic)):
        if weights is not None:
            raise SettingsError(f"Extractor '{name}' has no weights: leave weights unset; got {str(weights)!r}.")
        return None
    if weights is not None:
        path = weight_files.expanded(weights)
        if not path.exists():
            raise weight_files.WeightsError(
                f"There is no file {path}, which is the value of weights. {_other_way(name)}"
            )
    elif isinstance(extractor, Synthetic):
        path = included(extractor.accepted_dims[0])
    elif name in weight_files.PUBLISHED:
        path = weight_files.locate(weight_files.PUBLISHED[name])
    else:
        raise weight_files.WeightsError(f"The weights of '{name}' are not fetched automatically: {NEEDS[name]}.")
    try:
        if isinstance(extractor, NNUNetFeatures):
            return extractor.load_folder(path)
        extractor.load_published(weight_files.read(path))
    except ValueError as error:
        raise weight_files.WeightsError(f"{path} does not match extractor '{name}': {error}") from error
    return path
