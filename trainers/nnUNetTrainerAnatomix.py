"""anatomix, fine-tuned for segmentation with the recipe of the DropGen paper, which compares with it.

N. Dey et al., Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis, ICLR 2025,
https://arxiv.org/abs/2411.02372.
"""

from nnunet_dg.dropgen.finetune import AnatomixFinetune
from nnunet_dg.training.recipes import DropGenPaperRecipe
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerAnatomix_FinetuneAll(DropGenPaperRecipe, MethodsTrainer):
    """All weights of anatomix are trained."""

    methods = (AnatomixFinetune(),)


class nnUNetTrainerAnatomix_FinetuneDecoder(DropGenPaperRecipe, MethodsTrainer):
    """anatomix' encoder and the statistics of its batch norm are frozen."""

    methods = (AnatomixFinetune(train="decoder"),)
