"""DropGen and SgCG at once."""

from nnunet_dg.dropgen import DropGen
from nnunet_dg.sgcg import SgCG
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGenSgCG(MethodsTrainer):
    """The network of nnUNetTrainerDropGen, trained as nnUNetTrainerSgCG trains; image and twin lose other channels."""

    methods = (DropGen(), SgCG())
