"""Extractors by name: what users write into the plans, and what `build_extractor` makes of it."""

from __future__ import annotations

from pathlib import Path

from nnunet_dg.extractors import weights as room
from nnunet_dg.extractors.anatomix import LAYERS, VARIANTS, Anatomix
from nnunet_dg.extractors.base import FrozenExtractor
from nnunet_dg.extractors.mind import MIND

EXTRACTORS = (*VARIANTS, "mind")


def build_extractor(
    name: str, *, weights: str | Path | None = None, layer: str = "penultimate", spatial_dims: int = 3
) -> FrozenExtractor:
    """A frozen extractor, ready to compute: ``(B, 1, *spatial)``, any range -> ``(B, d, *spatial)``.

    Args:
        name: one of `EXTRACTORS`.
        weights: a checkpoint file in the published layout; None: the cached or fetched one.
        layer: ``"penultimate"`` or ``"final"``; extractors without layers take the default only.
        spatial_dims: 2 or 3. MIND works in both, anatomix in 3-D only.

    Raises:
        ValueError: unknown name or layer.
        NotImplementedError: the extractor does not exist for ``spatial_dims``.
        WeightsError: the weights are missing, cannot be fetched, or are not what they should be.
    """
    extractor = create_extractor(name, layer=layer, spatial_dims=spatial_dims)
    load_weights(extractor, name, weights)
    return extractor


def create_extractor(name: str, *, layer: str = "penultimate", spatial_dims: int = 3) -> FrozenExtractor:
    """The extractor without its weights, to be filled by `load_weights` or from a checkpoint. Raises as above."""
    if name not in EXTRACTORS:
        raise ValueError(f"extractor must be one of {', '.join(EXTRACTORS)}; got {name!r}.")
    if layer not in LAYERS:
        raise ValueError(f"layer must be one of {', '.join(LAYERS)}; got {layer!r}.")
    if name == "mind":
        if layer != "penultimate":
            raise ValueError(f"extractor 'mind' has no layers: leave layer at 'penultimate'; got {layer!r}.")
        return MIND(spatial_dims)
    if spatial_dims not in Anatomix.accepted_dims:
        raise NotImplementedError(f"extractor '{name}' is 3-D only, asked for {spatial_dims}-D; 'mind' works in 2-D.")
    return Anatomix(name, layer)


def load_weights(extractor: FrozenExtractor, name: str, weights: str | Path | None = None) -> Path | None:
    """Fill an extractor made by `create_extractor`; returns the file used, None for an extractor without weights.

    Raises:
        ValueError: weights given for an extractor that has none.
        WeightsError: the file is missing, cannot be fetched, or is not what it should be.
    """
    if not isinstance(extractor, Anatomix):
        if weights is not None:
            raise ValueError(f"extractor '{name}' has no weights: leave weights unset; got {str(weights)!r}.")
        return None
    if weights is not None:
        path = Path(weights).expanduser()
    elif name in room.PUBLISHED:
        path = room.locate(room.PUBLISHED[name])
    else:
        raise room.WeightsError(
            f"The weights of '{name}' are not fetched by this version: give a file (setting weights)."
        )
    try:
        extractor.load_published(room.read(path))
    except ValueError as error:
        raise room.WeightsError(f"{path} does not fit extractor '{name}': {error}") from error
    return path
