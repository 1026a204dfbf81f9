"""DropGen with the paper's own recipe around it (arXiv 2604.02564, appendix C), for those who want it whole."""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.training.recipes import DropGenPaperRecipe
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGen_Paper(DropGenPaperRecipe, MethodsTrainer):
    """AdamW 2e-4, weight decay 1e-4, cosine per step to 0, the paper's augmentation, images min-maxed per patch.

    Dice and cross entropy are nnU-Net's, as are its epochs (250 000 steps in all, the paper's number). The paper
    min-maxes whole volumes at inference, this trainer each window, so that training and inference agree. Padding and
    voxels outside a mask are black in both.
    """

    methods = (DropGen(image_scaling="minmax"),)
