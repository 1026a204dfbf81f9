"""SgCG: class-distribution contrast on amplitude-mixed images.

Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from nnunet_dg.sgcg.class_contrast import ClassContrast, choose_voxels
from nnunet_dg.sgcg.contrast import contrastive_upper_bound
from nnunet_dg.sgcg.method import SgCG
from nnunet_dg.sgcg.mixup import Partners, random_amplitude_mixup, random_ratio
from nnunet_dg.sgcg.restoration import RestorationDecoder, restoration_loss
from nnunet_dg.sgcg.statistics import ClassStatistics

SgCGSettings = SgCG

__all__ = [
    "ClassContrast",
    "ClassStatistics",
    "Partners",
    "RestorationDecoder",
    "SgCG",
    "SgCGSettings",
    "choose_voxels",
    "contrastive_upper_bound",
    "random_amplitude_mixup",
    "random_ratio",
    "restoration_loss",
]
