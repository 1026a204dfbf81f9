"""Filling a network's frozen extractor at the start of a training."""

from __future__ import annotations

from collections.abc import Callable

from nnunet_dg.dropgen import DropGenNetwork
from nnunet_dg.extractors import load_weights
from nnunet_dg.extractors import weights as room


def load_extractor(network: DropGenNetwork, log: Callable[[str], None]) -> None:
    """Fetch, verify and load the extractor's weights, unless a checkpoint has brought them already; log which.

    Raises:
        WeightsError: they are missing and cannot be fetched, or are not what they should be.
    """
    if network.extractor is None or not any(True for _ in network.extractor.parameters()):
        return
    name, given = network.settings.extractor, network.settings.weights
    if network.extractor.has_weights:
        log(f"Extractor {name}: weights from the checkpoint" + (f"; {given} is not read" if given else ""))
        return
    path = load_weights(network.extractor, name, given)
    log(f"Extractor {name}: weights from {path} ({'as set' if given else room.state(room.published(name))})")
