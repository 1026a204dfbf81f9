"""SgCG in nnU-Net: class-distribution contrast on amplitude-mixed images.

Semantic-Guided Contrastive Generalization for Medical Image Segmentation, submission to ICLR 2025,
https://openreview.net/search?term=Semantic-Guided+Contrastive+Generalization.
"""

from nnunet_dg.sgcg import SgCG
from nnunet_dg.training.recipes import SgCGPaperRecipe
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerSgCG(MethodsTrainer):
    """nnU-Net's own recipe and network, with SgCG's loss in place of its own."""

    methods = (SgCG(),)


class nnUNetTrainerSgCG_Paper(SgCGPaperRecipe, MethodsTrainer):
    """The paper's recipe, see SgCGPaperRecipe, for 400 epochs, as for fundus. Class statistics forget nothing.

    Plan with nnUNetPlannerSgCG_Paper to have batches of eight and images in [-1, 1] as well.
    """

    methods = (SgCG(memory=None),)


class nnUNetTrainerSgCG_Paper_200epochs(nnUNetTrainerSgCG_Paper):
    """200 epochs, as for prostate."""

    paper_epochs = 200
