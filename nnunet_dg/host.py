"""Calls to nnU-Net that several parts of this package need: class lookup, results folders, and unwrapping a network."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_dg.errors import HostError, SettingsError, UserError
from nnunet_dg.names import did_you_mean

TRAINERS = "nnunetv2.training.nnUNetTrainer"
PLANNERS = "nnunetv2.experiment_planning"


def look_up(package: str, name: str) -> type | None:
    """Find a class by name as nnU-Net's commands do, on every supported release.

    nnU-Net 2.8 has a separate function for trainers; earlier releases find all classes by walking the package's folder.

    Args:
        package: nnU-Net package to search, for example ``"nnunetv2.training.nnUNetTrainer"``.
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
    except ImportError as error:  # raised by the module that defines the trainer; the message names that module
        raise HostError(f"The trainer {name} cannot be imported: {error}") from error
    except (RuntimeError, AssertionError) as error:  # nnU-Net raises these if there is no such trainer
        raise _not_found(name) from error
    if found is None:
        raise _not_found(name)
    return found


def planner_class(name: str) -> type:
    """Find a planner by name as nnU-Net does.

    Raises:
        HostError: nnU-Net does not find it.
    """
    found = look_up(PLANNERS, name)
    if found is None:
        close = did_you_mean(name, ["ExperimentPlanner", *(p.name for p in entry_points(group="nnunetv2.planners"))])
        raise HostError(
            f"nnU-Net does not find a planner {name}.{close} `nnunet-dg doctor` lists this package's planners."
        )
    return found


def reason(error: Exception) -> str:
    """The message of an error of nnU-Net on one line."""
    return " ".join(str(error).split())


def results_folder(dataset: str | int, trainer: str, plans: str, configuration: str) -> Path:
    """nnU-Net's results folder of a training, which need not exist.

    Raises:
        HostError: nnUNet_results is not set.
        SettingsError: nnU-Net does not know the dataset.
    """
    from nnunetv2.paths import nnUNet_results  # here, because nnU-Net 2.7 prints a line if it is not set
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    if not nnUNet_results:
        raise HostError("nnUNet_results is not set. Set it to the folder that holds the trained models.")
    try:
        return Path(get_output_folder(str(dataset), trainer, plans, configuration))
    except (RuntimeError, ValueError) as error:  # nnU-Net raises these for an unknown dataset
        raise SettingsError(f"nnU-Net does not know the dataset {dataset!r}: {reason(error)}") from error


def _not_found(trainer: str) -> HostError:
    close = did_you_mean(trainer, [point.name for point in entry_points(group="nnunetv2.trainers")])
    return HostError(
        f"nnU-Net does not find a trainer {trainer}.{close} `nnunet-dg doctor` lists this package's trainers."
    )


def undistributed(network: nn.Module) -> nn.Module:
    """The network without `DistributedDataParallel`, still compiled."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def is_compiled(network: nn.Module) -> bool:
    """Whether nnU-Net compiles the network."""
    return isinstance(undistributed(network), OptimizedModule)


def unwrap(network: nn.Module) -> nn.Module:
    """The network without the wrappers that nnU-Net adds: `torch.compile` and `DistributedDataParallel`."""
    network = undistributed(network)
    return network._orig_mod if isinstance(network, OptimizedModule) else network
