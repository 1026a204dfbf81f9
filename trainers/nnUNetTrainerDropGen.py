"""DropGen in nnU-Net: frozen stable features next to the image, and channel dropout over both (arXiv 2604.02564)."""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGen(MethodsTrainer):
    """nnU-Net's own recipe; the planned network sees the image and 16 anatomix features, dropped at p = 0.5."""

    methods = (DropGen(),)


class nnUNetTrainerDropGen_p025(MethodsTrainer):
    """Milder dropping: leans more on the image, closer to nnU-Net in-domain."""

    methods = (DropGen(p=0.25),)


class nnUNetTrainerDropGen_p075(MethodsTrainer):
    """Stronger dropping: leans more on the features."""

    methods = (DropGen(p=0.75),)


class nnUNetTrainerDropGen_MIND(MethodsTrainer):
    """MIND-SSC descriptors instead of anatomix: no weights to fetch, 2-D and 3-D."""

    methods = (DropGen(extractor="mind"),)
