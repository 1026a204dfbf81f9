"""Filling a network's frozen extractor at the start of a training."""

from __future__ import annotations

from collections.abc import Callable

from nnunet_dg.dropgen import DropGenNetwork
from nnunet_dg.extractors import load_weights
from nnunet_dg.extractors import weights as room


def load_extractor(network: DropGenNetwork, log: Callable[[str], None]) -> None:
    """Fetch, verify and load the extractor's weights, unless a checkpoint has brought them already.

    Raises:
        WeightsError: they are missing and cannot be fetched, or are not what they should be.
    """
    if network.extractor is None or network.extractor.has_weights:
        return
    name = network.settings.extractor
    path = load_weights(network.extractor, name, network.settings.weights)
    note = ""
    if network.settings.weights is None and (blob := room.accepted_blob(room.PUBLISHED[name])):
        note = f" (installed as unpublished, git blob {blob})"
    log(f"Extractor {name}: weights from {path}{note}")
