"""DropGen and TinyMIG combined."""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.tinymig import TinyMIG
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGenTinyMIG(MethodsTrainer):
    """The network of nnUNetTrainerDropGen with TinyMIG's loss. Channels of both passes are dropped independently."""

    methods = (DropGen(), TinyMIG())
