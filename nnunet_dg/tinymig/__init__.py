"""TinyMIG: a foundation model teaches the planned network its feature statistics and content.

C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision Foundation
Models to Single-Domain Medical Imaging, ICML 2025, https://proceedings.mlr.press/v267.
"""

from nnunet_dg.errors import DimensionError
from nnunet_dg.tensors import modulate
from nnunet_dg.tinymig.alignment import localized_representation_alignment
from nnunet_dg.tinymig.consistency import cross_distribution_consistency
from nnunet_dg.tinymig.content import FrequencyContentEnhancement
from nnunet_dg.tinymig.method import TinyMIG
from nnunet_dg.tinymig.modulation import OWN_STATISTICS, OwnStatistics, universal_statistics
from nnunet_dg.tinymig.reprogramming import FeatureReprogramming
from nnunet_dg.tinymig.teachers import build_teacher, load_teacher
from nnunet_dg.tinymig.teaching import ContentAlignment, Teaching

TinyMIGSettings = TinyMIG

__all__ = [
    "OWN_STATISTICS",
    "ContentAlignment",
    "DimensionError",
    "FeatureReprogramming",
    "FrequencyContentEnhancement",
    "OwnStatistics",
    "Teaching",
    "TinyMIG",
    "TinyMIGSettings",
    "build_teacher",
    "cross_distribution_consistency",
    "load_teacher",
    "localized_representation_alignment",
    "modulate",
    "universal_statistics",
]
