"""DropGen with the paper's own recipe: optimizer, schedule, sampling and augmentation.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564, appendix C.
"""

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring

from nnunet_dg.dropgen import DropGen
from nnunet_dg.training.recipes import DropGenPaperRecipe, FewShotRecipe
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGen_Paper(DropGenPaperRecipe, MethodsTrainer):
    """The paper's recipe, see DropGenPaperRecipe, for 250 000 steps.

    Plan with nnUNetPlannerDropGen_Paper to have the paper's network, batch size and normalization as well: it scales
    whole images to [0, 1], as the paper does at inference. With other plans, each window is scaled, so that training
    and inference agree. Voxels outside a mask and padding are black. Not as in the paper: windows are scaled to [0, 1]
    again before the extractor, predictions are averaged over mirrored images unless `--disable_tta` is given, and the
    last checkpoint is used unless `-chk checkpoint_best.pth` is.
    """

    methods = (DropGen(image_scaling="minmax"),)


class nnUNetTrainerDropGen_Paper_FewShot(FewShotRecipe, nnUNetTrainerDropGen_Paper):
    """40 000 steps, as in the paper's experiments with five training cases."""


class nnUNetTrainerDropGen_Paper_NoMirroring(nnUNetTrainerDropGen_Paper, nnUNetTrainerNoMirroring):
    """Without flips and rotations by 90 degrees, as in the paper where left and right matter (AMOS, CoW)."""
