"""DropGen and SgCG at once."""

from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen
from nnunet_dg.trainers.nnUNetTrainerSgCG import nnUNetTrainerSgCG


class nnUNetTrainerDropGenSgCG(nnUNetTrainerSgCG, nnUNetTrainerDropGen):
    """The network of nnUNetTrainerDropGen, trained as nnUNetTrainerSgCG trains; image and twin lose other channels."""
