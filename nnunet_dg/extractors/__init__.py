"""Frozen dense feature extractors, whose features are stable across image contrasts."""

from nnunet_dg.extractors.base import FrozenExtractor
from nnunet_dg.extractors.registry import (
    EXTRACTORS,
    architecture_of,
    build_extractor,
    create_extractor,
    default_normalization,
    load_weights,
    with_architecture,
)

__all__ = [
    "EXTRACTORS",
    "FrozenExtractor",
    "architecture_of",
    "build_extractor",
    "create_extractor",
    "default_normalization",
    "load_weights",
    "with_architecture",
]
