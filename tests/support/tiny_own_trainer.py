"""The trainer of examples/own_trainer for three epochs of two iterations."""

from own_trainer import nnUNetTrainerDropGenMild
from tiny_trainers import tiny

Tiny_nnUNetTrainerDropGenMild = tiny(nnUNetTrainerDropGenMild)
