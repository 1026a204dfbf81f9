"""DropGen and TinyMIG at once."""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.tinymig import TinyMIG
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGenTinyMIG(MethodsTrainer):
    """The network of nnUNetTrainerDropGen, taught as nnUNetTrainerTinyMIG teaches; both passes lose other channels."""

    methods = (DropGen(), TinyMIG())
