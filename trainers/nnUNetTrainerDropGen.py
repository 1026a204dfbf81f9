"""DropGen in nnU-Net: frozen stable features next to the image, and channel dropout over both.

Why Invariance is Not Enough for Biomedical Domain Generalization and How to Fix It, https://arxiv.org/abs/2604.02564.
"""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGen(MethodsTrainer):
    """nnU-Net's own recipe. The planned network sees the image and 16 anatomix features, with dropout p = 0.5."""

    methods = (DropGen(),)


class nnUNetTrainerDropGen_p025(MethodsTrainer):
    """Milder dropout: the network relies more on the image and is closer to nnU-Net in-domain."""

    methods = (DropGen(p=0.25),)


class nnUNetTrainerDropGen_p075(MethodsTrainer):
    """Stronger dropout: the network relies more on the features."""

    methods = (DropGen(p=0.75),)


class nnUNetTrainerDropGen_MIND(MethodsTrainer):
    """MIND-SSC descriptors instead of anatomix: 2-D and 3-D, without weights to download."""

    methods = (DropGen(extractor="mind"),)


class nnUNetTrainerDropGen_Synthetic(MethodsTrainer):
    """A small network that was trained on generated volumes only, instead of anatomix: 2-D and 3-D. Not a default."""

    methods = (DropGen(extractor="synthetic"),)
