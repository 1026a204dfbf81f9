"""Any trained nnU-Net as a frozen extractor: the features of its last decoder stage, at full resolution.

A model folder contains ``plans.json`` and ``fold_X/checkpoint_final.pth`` (or ``checkpoint_best.pth``), as written by
`nnUNetv2_train` or unzipped from a published model such as nnInteractive. nnInteractive has seven more input channels
for prompts; these are zero here.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.errors import DataError
from nnunet_dg.extractors.base import FrozenExtractor
from nnunet_dg.extractors.plausible import implausible
from nnunet_dg.files import read_json
from nnunet_dg.formats import ModelPlans

PLANS_READER = "nnunet_dg.planning.architecture:planned_architecture"
"""Resolved when a model folder is read, since extractors do not import nnU-Net, which should read its own plans."""
NOT_PLANNED = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
"""Exceptions that constructors of networks raise for invalid arguments."""
NETWORKS = {network.__name__: network for network in (PlainConvUNet, ResidualEncoderUNet, ResidualUNet)}
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")


class NNUNetFeatures(FrozenExtractor):
    """The input of the last segmentation layer of a planned network, with ``features_per_stage[0]`` channels.

    Input channels after the first are zero. Weights must be loaded with `load_folder` or from a checkpoint.

    Args:
        architecture: ``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import`` as in nnU-Net's plans, and
            ``input_channels``; see `read_architecture`.

    Raises:
        DataError: The architecture is incomplete, or not one of `NETWORKS`.
    """

    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        network_class = _network_class(architecture)
        try:
            arguments = {
                key: getattr(nn, value.rsplit(".", 1)[-1])
                if value is not None and key in architecture["_kw_requires_import"]
                else value
                for key, value in architecture["arch_kwargs"].items()
            }
            self.input_channels = int(architecture["input_channels"])
            dims = dimensions(architecture)
            strides = np.broadcast_to(np.prod(arguments["strides"], axis=0), dims)
            self.network = network_class(
                input_channels=self.input_channels, num_classes=1, **arguments | {"deep_supervision": False}
            )
        except NOT_PLANNED as error:
            raise DataError(f"The architecture is not one of nnU-Net's plans: {error!r}.") from error
        decoder = self.network.decoder
        decoder.seg_layers = nn.ModuleList(nn.Identity() for _ in decoder.seg_layers)
        self.out_channels = self.network.encoder.output_channels[0]
        self.accepted_dims = (dims,)
        self.multiple = tuple(int(stride) for stride in strides)
        self.freeze()

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features ``(B, features_per_stage[0], *spatial)`` of ``(B, 1, *spatial)``."""
        missing = self.input_channels - x.shape[1]
        features: Tensor = self.network(F.pad(x, [0, 0] * (x.ndim - 2) + [0, missing]))
        return features

    def load_folder(self, folder: Path) -> Path:
        """Load the weights from a model folder; returns the path of the checkpoint.

        Raises:
            DataError: The checkpoint is missing or unreadable, is of another network, or has implausible weights.
        """
        path, checkpoint = _checkpoint(folder)
        given, own = _weights(checkpoint), self.network.state_dict()
        wrong = [key for key in own if key not in given or given[key].shape != own[key].shape]
        wrong += [key for key in given if key not in own]
        if wrong:
            raise DataError(
                f"{path} does not match the planned network: {len(wrong)} tensors differ, for example {wrong[0]}. "
                f"Models whose trainer changes or wraps the planned network cannot be extractors."
            )
        if problem := implausible(given):
            raise DataError(f"{path} does not contain trained weights: {problem}. Use another fold or model.")
        self.network.load_state_dict(given)
        self.has_weights = True
        return path


def read_architecture(folder: Path) -> dict[str, Any]:
    """The architecture of the network in a model folder, as plain JSON, for `NNUNetFeatures` and for the plans.

    nnU-Net reads the plans, so they may be of any version and have configurations that inherit from others.

    Raises:
        DataError: The folder is not a model folder, or its model cannot be an extractor; the message says why.
    """
    path, checkpoint = _checkpoint(folder)
    plans = read_json(folder / "plans.json", ModelPlans, "nnUNetv2_train writes this file; get the model again.")
    read_plans = pkgutil.resolve_name(PLANS_READER)
    try:
        architecture: dict[str, Any] = read_plans(plans, checkpoint["init_args"]["configuration"])
        first = next(value for value in _weights(checkpoint).values() if value.ndim > 2)
        _network_class(architecture)
    except (*NOT_PLANNED, StopIteration) as error:
        raise DataError(f"{folder / 'plans.json'} and {path} do not describe a network: {error!r}.") from error
    return architecture | {"input_channels": first.shape[1]}


def _network_class(architecture: dict[str, Any]) -> Any:
    """The network class by name. Only listed classes are accepted, so that plans cannot import arbitrary code."""
    name = str(architecture.get("network_class_name")).rsplit(".", 1)[-1]
    if name not in NETWORKS:
        raise DataError(f"The model's network is a {name}. Extractors can be made only of {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def dimensions(architecture: dict[str, Any]) -> int:
    """The number of spatial axes of an architecture: 2 or 3."""
    return 2 if architecture["arch_kwargs"]["conv_op"].endswith("Conv2d") else 3


def _checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a model folder: that of ``fold_all`` if there is one, else of the lowest fold."""
    folds = sorted(folder.glob("fold_*"), key=lambda fold: (fold.name != "fold_all", fold.name))
    candidates = [fold / name for name in CHECKPOINTS for fold in folds]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None or not (folder / "plans.json").is_file():
        raise DataError(
            f"{folder} is not a trained model of nnU-Net. It must contain plans.json and, in a folder fold_X, "
            f"{' or '.join(CHECKPOINTS)}."
        )
    return path, read_checkpoint(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net to the CPU with ``weights_only=True``.

    Raises:
        DataError: The file is not a checkpoint, lacks required entries, or asks to run code.
    """
    try:
        # in addition to tensors, nnU-Net's checkpoints contain its log, which has NumPy scalars
        with torch.serialization.safe_globals(_numpy_globals()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive makes PyTorch raise almost anything
        raise DataError(
            f"{path} cannot be read safely, as tensors and numbers only: it is truncated, not a PyTorch file, or asks "
            f"to run code. Get the file again."
        ) from error
    if problem := _checkpoint_problem(checkpoint):
        raise DataError(f"{path} is not a checkpoint of nnU-Net: {problem}.")
    return dict(checkpoint)


def _checkpoint_problem(checkpoint: Any) -> str:
    """A description of what a checkpoint lacks; empty if it is complete."""
    if not isinstance(checkpoint, dict):
        return f"it contains a {type(checkpoint).__name__} instead of a dictionary"
    weights, arguments = checkpoint.get("network_weights"), checkpoint.get("init_args")
    if not isinstance(weights, dict):
        return "it has no network_weights with names and tensors"
    if strange := [
        f"the weight {k} is not a tensor, but {type(v).__name__}"
        for k, v in weights.items()
        if not isinstance(v, Tensor)
    ]:
        return strange[0]
    if not isinstance(arguments, dict) or not isinstance(arguments.get("configuration"), str):
        return "it has no init_args with a configuration"
    return ""


def _numpy_globals() -> list[Any]:
    """The functions that unpickling NumPy numbers and arrays calls, under their names in NumPy 1 and NumPy 2."""

    def named(function: Any, module: str) -> Any:
        def call(*arguments: Any) -> Any:
            return function(*arguments)

        call.__module__ = f"numpy.{module}.multiarray"
        call.__name__ = call.__qualname__ = function.__name__  # PyTorch before 2.7 reads one, later ones the other
        return call

    functions = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]  # scalar and _reconstruct
    aliases = [named(function, module) for function in functions for module in ("core", "_core")]
    return [*aliases, np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + "efd?"}]


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Network weights by their names in an unwrapped network, without the segmentation layers."""
    weights = {
        key.removeprefix("module.").removeprefix("_orig_mod."): v for key, v in checkpoint["network_weights"].items()
    }
    return {key: value for key, value in weights.items() if not key.startswith("decoder.seg_layers.")}
