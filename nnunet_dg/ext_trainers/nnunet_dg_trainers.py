"""This package's trainers for ``nnUNet_extTrainer``, which is needed only if PyTorch's autoload is switched off.

nnU-Net imports the files of that folder by their bare names. This one provides the classes that our entry points
declare, and defines none.
"""

from importlib.metadata import entry_points

globals().update(
    {e.name: e.load() for e in entry_points(group="nnunetv2.trainers") if e.value.startswith("nnunet_dg.")}
)
