"""SgCG in nnU-Net: class-distribution contrast on amplitude-mixed images.

Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from nnunet_dg.sgcg import SgCG
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerSgCG(MethodsTrainer):
    """nnU-Net's own recipe and network, with SgCG's loss in place of its own."""

    methods = (SgCG(),)
