"""Any trained nnU-Net as a frozen extractor: the features of its last decoder stage, at full resolution.

A model folder is what `nnUNetv2_train` leaves behind, or what a published model unzips to: ``plans.json`` and
``fold_X/checkpoint_final.pth`` (or ``checkpoint_best.pth``). nnInteractive's, for example: it takes the image in the
first channel and prompts in seven more, which are zero here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.extractors.base import FrozenExtractor

NETWORKS = {network.__name__: network for network in (PlainConvUNet, ResidualEncoderUNet, ResidualUNet)}
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")


class NNUNetFeatures(FrozenExtractor):
    """What the last segmentation layer of a planned network sees: ``features_per_stage[0]`` channels.

    Input channels beyond the first are zero. Without weights until they are loaded.

    Args:
        architecture: ``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import`` as in nnU-Net's plans, and
            ``input_channels``; see `read_architecture`.

    Raises:
        ValueError: the architecture is none of `NETWORKS`, or incomplete.
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
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"This is no architecture of nnU-Net's plans: {error!r}.") from error
        self.network = network_class(
            input_channels=self.input_channels, num_classes=1, **arguments | {"deep_supervision": False}
        )
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
        """Fill the weights from a model folder; returns the checkpoint used.

        Raises:
            ValueError: the folder's checkpoint is missing, cannot be read, or holds another network.
        """
        path, checkpoint = _checkpoint(folder)
        given, own = _weights(checkpoint), self.network.state_dict()
        wrong = [key for key in own if key not in given or given[key].shape != own[key].shape]
        wrong += [key for key in given if key not in own]
        if wrong:
            raise ValueError(
                f"{path} does not hold the network that is asked for: {len(wrong)} tensors differ, {wrong[0]} for one. "
                f"Models whose trainer changes or wraps the planned network cannot be extractors."
            )
        self.network.load_state_dict(given)
        self.has_weights = True
        return path


def read_architecture(folder: Path) -> dict[str, Any]:
    """The architecture of the network in a model folder, as plain JSON, for `NNUNetFeatures` and for the plans.

    Raises:
        ValueError: not a model folder, or of a kind that cannot be an extractor; says what is missing.
    """
    path, checkpoint = _checkpoint(folder)
    try:
        architecture = _planned(json.loads((folder / "plans.json").read_text()), checkpoint["init_args"])
        first = next(value for value in _weights(checkpoint).values() if value.ndim > 2)
        _network_class(architecture)
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(f"{folder / 'plans.json'} and {path} do not describe a network: {error!r}.") from error
    return architecture | {"input_channels": first.shape[1]}


def _planned(plans: dict[str, Any], init_args: dict[str, Any]) -> dict[str, Any]:
    """The architecture of the configuration that was trained, inherited or its own."""
    name: str | None = init_args["configuration"]
    configurations = dict(plans["configurations"])
    while name is not None:
        configuration = configurations.pop(name)  # so that a circle ends
        if "architecture" in configuration:
            architecture: dict[str, Any] = configuration["architecture"]
            return architecture
        name = configuration.get("inherits_from")
    raise ValueError("plans of nnU-Net before 2.5 hold no architecture; use a model trained with a newer one")


def _network_class(architecture: dict[str, Any]) -> Any:
    """By name, from a list: plans are no reason to import whatever they name."""
    name = str(architecture.get("network_class_name")).rsplit(".", 1)[-1]
    if name not in NETWORKS:
        raise ValueError(f"The model's network is a {name}; extractors can be made of {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def dimensions(architecture: dict[str, Any]) -> int:
    """The number of spatial axes of an architecture: 2 or 3."""
    return 2 if architecture["arch_kwargs"]["conv_op"].endswith("Conv2d") else 3


def _checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a model folder: of ``fold_all`` if there is one, else of the lowest fold."""
    folds = sorted(folder.glob("fold_*"), key=lambda fold: (fold.name != "fold_all", fold.name))
    candidates = [fold / name for name in CHECKPOINTS for fold in folds]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None or not (folder / "plans.json").is_file():
        raise ValueError(
            f"{folder} is no trained model of nnU-Net: it must hold plans.json and fold_X/{' or '.join(CHECKPOINTS)}."
        )
    return path, read_checkpoint(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of nnU-Net, read with ``weights_only=True``, on the CPU.

    Raises:
        ValueError: it is no such file, or one that asks to run code.
    """
    try:
        # nnU-Net's checkpoints hold, beside tensors, its log of numpy scalars
        with torch.serialization.safe_globals(_numpy_globals()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        problems = {"network_weights", "init_args"} - set(checkpoint)
    except Exception as error:  # a damaged archive makes PyTorch raise almost anything
        raise ValueError(
            f"{path} cannot be read as tensors and numbers alone: it is truncated, foreign, or asks to run code, which "
            f"is refused. Get the file again."
        ) from error
    if problems:
        raise ValueError(f"{path} is no checkpoint of nnU-Net: it holds no {' and no '.join(sorted(problems))}.")
    return dict(checkpoint)


def _numpy_globals() -> list[Any]:
    """What unpickling numpy's numbers and arrays of numbers calls, by the names of numpy 1 and of numpy 2."""

    def named(function: Any, module: str) -> Any:
        def call(*arguments: Any) -> Any:
            return function(*arguments)

        call.__module__ = f"numpy.{module}.multiarray"
        call.__name__ = call.__qualname__ = function.__name__  # PyTorch looks at one before 2.7, at the other after
        return call

    functions = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]  # scalar and _reconstruct
    aliases = [named(function, module) for function in functions for module in ("core", "_core")]
    return [*aliases, np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + "efd?"}]


def _weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Network weights by the names that an unwrapped network gives them, without the segmentation layers."""
    weights = {
        key.removeprefix("module.").removeprefix("_orig_mod."): v for key, v in checkpoint["network_weights"].items()
    }
    return {key: value for key, value in weights.items() if not key.startswith("decoder.seg_layers.")}
