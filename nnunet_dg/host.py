"""What this package calls in nnU-Net without changing it: class lookup, and the network inside its wrappers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_dg.errors import HostError, UserError

TRAINERS = "nnunetv2.training.nnUNetTrainer"


def look_up(package: str, name: str) -> type | None:
    """Find a class by name as nnU-Net's commands do, on every supported release.

    nnU-Net 2.8 has its own function for trainers; before, all classes are found by walking the package's folder.

    Args:
        package: Package of nnU-Net in which to look, for example ``"nnunetv2.training.nnUNetTrainer"``.
        name: Name of the class.
    """
    if package.endswith("nnUNetTrainer") and find_spec("nnunetv2.utilities.find_objects"):
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        return recursive_find_trainer_class_by_name(name)
    folder = Path(next(iter(nnunetv2.__path__))).joinpath(*package.split(".")[1:])
    return recursive_find_python_class(str(folder), name, package)


def trainer_class(name: str) -> type:
    """Find a trainer by name as nnU-Net does.

    Raises:
        HostError: nnU-Net does not find it, or it cannot be imported.
    """
    try:
        found = look_up(TRAINERS, name)
    except UserError:
        raise
    except ImportError as error:  # of the module that defines it; the message says whose it is
        raise HostError(f"The trainer {name} cannot be imported: {error}") from error
    except (RuntimeError, AssertionError) as error:  # how nnU-Net says that there is no such trainer
        raise HostError(f"nnU-Net does not find a trainer {name}. `nnunet-dg doctor` lists ours.") from error
    if found is None:
        raise HostError(f"nnU-Net does not find a trainer {name}. `nnunet-dg doctor` lists ours.")
    return found


def unwrap(network: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and `DistributedDataParallel`, as nnU-Net nests them."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network
