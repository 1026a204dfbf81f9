"""DropGen and SgCG combined."""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.sgcg import SgCG
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGenSgCG(MethodsTrainer):
    """The network of nnUNetTrainerDropGen with SgCG's loss. Channels of image and twin are dropped independently."""

    methods = (DropGen(), SgCG())
