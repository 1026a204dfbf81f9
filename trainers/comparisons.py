"""Trainers of the comparisons in DropGen's paper: its ablations, its baseline, and anatomix fine-tuned.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564.
"""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.dropgen.finetune import AnatomixFinetune
from nnunet_dg.training.recipes import DropGenPaperRecipe, FewShotRecipe
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGen_Structured(MethodsTrainer):
    """The paper's ablation that drops the image or all features of a sample at once."""

    methods = (DropGen(masking="structured"),)


class nnUNetTrainerDropGen_FeaturesOnly(MethodsTrainer):
    """The paper's ablation in which the network sees the features and not the image, without dropout."""

    methods = (DropGen(inputs="features"),)


class nnUNetTrainerDropGen_SqueezeExcite(MethodsTrainer):
    """The paper's ablation that weights image and features by squeeze-and-excitation, without dropout."""

    methods = (DropGen(fusion="squeeze-excitation", p=0.0),)


class nnUNetTrainerERM(MethodsTrainer):
    """nnUNetTrainer, with the seed and the length that the plans have under ``plans["nnunet_dg"]["training"]``."""


class nnUNetTrainerERM_Paper(DropGenPaperRecipe, MethodsTrainer):
    """The paper's baseline: the same recipe, with the image as the only input."""

    methods = (DropGen(image_scaling="minmax", inputs="image"),)


class nnUNetTrainerERM_Paper_FewShot(FewShotRecipe, nnUNetTrainerERM_Paper):
    """The baseline with 40 000 steps."""


class nnUNetTrainerAnatomix_FinetuneAll(DropGenPaperRecipe, MethodsTrainer):
    """All weights of anatomix are trained, with the recipe of DropGen's paper."""

    methods = (AnatomixFinetune(),)


class nnUNetTrainerAnatomix_FinetuneDecoder(DropGenPaperRecipe, MethodsTrainer):
    """The recipe of DropGen's paper; anatomix' encoder and the statistics of its batch norm are frozen."""

    methods = (AnatomixFinetune(train="decoder"),)
