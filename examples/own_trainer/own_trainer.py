"""A trainer of your own. Install it with pip install . and train with -tr nnUNetTrainerDropGenMild."""

from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_5epochs

from nnunet_dg.dropgen import DropGen
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerDropGenMild(MethodsTrainer):
    """DropGen without weights to fetch, which drops fewer channels than the default."""

    methods = (DropGen(extractor="mind", p=0.35),)


class nnUNetTrainerDropGenMild_5epochs(nnUNetTrainerDropGenMild, nnUNetTrainer_5epochs):
    """For trying things out."""
