"""Variants of all trainers with three epochs of two iterations, declared by entry points like another package's."""

import os
import random
import signal
from functools import partial
from importlib.metadata import entry_points

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def tiny(base):
    class Tiny(base):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 3, 2, 1
            self.save_every = 1
            if "TINY_SEEDED" in os.environ:
                self.initial_lr /= 10  # so that rounding errors, which differ between processes, stay small
            self.seed(99)

        def _do_i_compile(self):
            """nnU-Net compiles only on CUDA; with TINY_COMPILED, it compiles on the CPU as well."""
            if "TINY_COMPILED" in os.environ:
                torch.compile = partial(torch.compile, backend="aot_eager")  # needs no C++ compiler
            return "TINY_COMPILED" in os.environ

        def seed(self, number):
            """Set the random state of an epoch. With nnUNet_n_proc_DA=0, a run has no other random state."""
            if "TINY_SEEDED" in os.environ:
                for seed in (random.seed, np.random.seed, torch.manual_seed):
                    seed(number)

        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            self.seed(self.current_epoch)

        def perform_actual_validation(self, save_probabilities=False):
            if "TINY_UNVALIDATED" not in os.environ:
                super().perform_actual_validation(save_probabilities)

        def on_epoch_end(self):
            super().on_epoch_end()
            if os.environ.get("TINY_STOP_AFTER") == str(self.current_epoch):
                os.killpg(os.getpgrp(), signal.SIGKILL)  # like the time limit of a cluster

    Tiny.__name__ = Tiny.__qualname__ = f"Tiny_{base.__name__}"
    return Tiny


class Doubled(torch.nn.Module):
    """A network with the planned network's state dict and another forward pass."""

    def __init__(self, network):
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder

    def forward(self, x):
        return 2 * self.decoder(self.encoder(x))


class nnUNetTrainerOtherForward(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        return Doubled(
            nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
        )


own = [e.load() for e in entry_points(group="nnunetv2.trainers") if e.dist.name == "nnunet-dg"]
for base in (nnUNetTrainer, *own):
    globals()[f"Tiny_{base.__name__}"] = tiny(base)
