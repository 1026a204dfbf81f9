"""TinyMIG: the planned network, taught by a foundation model whose statistics and content it takes over."""

from nnunet_dg.tinymig.alignment import localized_representation_alignment
from nnunet_dg.tinymig.consistency import cross_distribution_consistency
from nnunet_dg.tinymig.content import FrequencyContentEnhancement
from nnunet_dg.tinymig.modulation import modulate, universal_statistics
from nnunet_dg.tinymig.reprogramming import FeatureReprogramming

__all__ = [
    "FeatureReprogramming",
    "FrequencyContentEnhancement",
    "cross_distribution_consistency",
    "localized_representation_alignment",
    "modulate",
    "universal_statistics",
]
