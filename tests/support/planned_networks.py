"""Networks as nnU-Net plans them, for tests of hooks."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import plans

RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def built(trainer=nnUNetTrainer, residual=False, deep_supervision=True, **architecture_options):
    """The 3-D network of a trainer, in training mode, with options of its architecture."""
    manager = plans(16)
    configuration = manager.get_configuration("3d_fullres")
    configuration.configuration["architecture"]["arch_kwargs"] |= architecture_options
    if residual:
        architecture = configuration.configuration["architecture"]
        architecture["network_class_name"] = RESIDUAL
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    torch.manual_seed(0)
    return trainer.build_network_architecture(manager, configuration, 1, 3, deep_supervision).train()
