"""Where ``nnUNet_extTrainer`` points when PyTorch's autoload is switched off: our trainers, the very same classes.

nnU-Net imports the files of that folder by their bare names; this one only passes on what our entry points declare.
"""

from importlib.metadata import entry_points

globals().update(
    {e.name: e.load() for e in entry_points(group="nnunetv2.trainers") if e.value.startswith("nnunet_dg.")}
)
