"""DropGen and TinyMIG at once."""

from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen
from nnunet_dg.trainers.nnUNetTrainerTinyMIG import nnUNetTrainerTinyMIG


class nnUNetTrainerDropGenTinyMIG(nnUNetTrainerTinyMIG, nnUNetTrainerDropGen):
    """The network of nnUNetTrainerDropGen, taught as nnUNetTrainerTinyMIG teaches; both passes lose other channels."""
