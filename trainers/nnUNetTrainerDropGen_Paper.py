"""DropGen with the paper's own recipe: optimizer, schedule and augmentation.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564, appendix C.
"""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.training.recipes import DropGenPaperRecipe
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGen_Paper(DropGenPaperRecipe, MethodsTrainer):
    """AdamW 2e-4, weight decay 1e-4, cosine decay to 0, the paper's augmentation, patches scaled to [0, 1].

    Dice and cross entropy and the number of epochs are nnU-Net's (250 000 steps in total, as in the paper). The paper
    scales whole volumes to [0, 1] at inference. This trainer scales each window, so that training and inference agree.
    Padding and voxels outside a mask are black in both.
    """

    methods = (DropGen(image_scaling="minmax"),)


class nnUNetTrainerERM_Paper(DropGenPaperRecipe, MethodsTrainer):
    """The paper's baseline: the same recipe, with the image as the only input."""

    methods = (DropGen(image_scaling="minmax", inputs="image"),)
