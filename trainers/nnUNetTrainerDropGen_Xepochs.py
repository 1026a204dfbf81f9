"""DropGen with few epochs, like nnU-Net's own nnUNetTrainer_Xepochs."""

from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs import nnUNetTrainer_20epochs

from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen_MIND


class nnUNetTrainerDropGen_MIND_20epochs(nnUNetTrainerDropGen_MIND, nnUNetTrainer_20epochs):
    """For quick experiments."""
