"""TinyMIG in nnU-Net: a foundation model teaches the planned network, which is then used for inference.

C. Liu, H. Xu, Y. Cao, X. Su, Z. Qu, T. Li, S. An, H. Zhu, TinyMIG: Transferring Generalization from Vision Foundation
Models to Single-Domain Medical Imaging, ICML 2025, https://proceedings.mlr.press/v267.
"""

from nnunet_dg.tinymig import TinyMIG
from nnunet_dg.tinymig.teacher_model import Teacher
from nnunet_dg.training.recipes import TinyMIGPaperRecipe
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerTinyMIG(MethodsTrainer):
    """nnU-Net's own recipe and network, with TinyMIG's loss. The teacher is SAM in 2-D and anatomix in 3-D."""

    methods = (TinyMIG(),)


class nnUNetTrainerTinyMIG_DINOv2(MethodsTrainer):
    """DINOv2 as the teacher, in 2-D."""

    methods = (TinyMIG(teacher="vit_base_patch14_dinov2.lvd142m"),)


class nnUNetTrainerTinyMIG_Paper(TinyMIGPaperRecipe, MethodsTrainer):
    """The paper's recipe, see TinyMIGPaperRecipe, for 200 epochs, as for prostate.

    Plan with nnUNetPlannerTinyMIG_Paper to have the paper's network, batch size and images in [0, 1] as well.
    The alignment is not the printed one; for that, set `alignment_scale` to ``"paper"``.
    """

    methods = (TinyMIG(),)


class nnUNetTrainerTinyMIG_Paper_100epochs(nnUNetTrainerTinyMIG_Paper):
    """100 epochs, as for fundus."""

    paper_epochs = 100


class nnUNetTrainerTeacher(MethodsTrainer):
    """The teacher as the model itself, as in the rows of table 3. Predicting needs this package."""

    methods = (Teacher(),)
