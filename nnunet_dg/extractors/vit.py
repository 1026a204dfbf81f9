"""ViTs of timm, by name: built without weights, filled from a file or from the hub, whose files are kept and verified.

Everything is read with ``weights_only=True`` or is a safetensors file.
"""

from __future__ import annotations

import difflib
import sys
from functools import partial
from pathlib import Path

import huggingface_hub
import pooch
import timm
import torch
from torch import Tensor, nn

from nnunet_dg.extractors.weights import WeightsError, home

FILE = "model.safetensors"


def check_name(name: str) -> None:
    """Raises a ValueError if timm has no such model."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        raise ValueError(
            f"teacher must be anatomix, nnunet, or the name of a ViT in timm; got {name!r}."
            + (f" Close to it: {', '.join(close)}." if close else "")
        )


def build(name: str, seed: int = 0) -> nn.Module:
    """The ViT, with random weights from ``seed``, for images of any size that its patches divide.

    Raises:
        ValueError: timm has no such model, or it is no ViT.
    """
    check_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        except TypeError:  # SAM's ViTs take any size without being asked to
            model = timm.create_model(name, num_classes=0)
    if not (hasattr(model, "blocks") and hasattr(model, "patch_embed") and hasattr(model, "forward_intermediates")):
        raise ValueError(f"timm's {name} is no ViT: it has no sequence of blocks. ViTs are vit_*, samvit_* and deit_*.")
    return model


def width(model: nn.Module) -> int:
    """Channels of every block."""
    return int(model.embed_dim)  # type: ignore[arg-type]


def patch_size(model: nn.Module) -> tuple[int, int]:
    """Of its patches, in pixels."""
    height, breadth = model.patch_embed.patch_size  # type: ignore[union-attr, misc]
    return int(height), int(breadth)


def mean_and_std(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the images it was trained on, RGB in [0, 1]."""
    config = model.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"])  # type: ignore[index]


def load(model: nn.Module, name: str, weights: str | Path | None = None) -> Path:
    """Fill a ViT made by `build`; returns the file used.

    Args:
        model: the ViT.
        name: as given to `build`.
        weights: a checkpoint file, of timm or as its authors published it (SAM's and MedSAM's, for example); None: the
            file on the hub, see `locate`.

    Raises:
        WeightsError: the file is missing, cannot be fetched, or does not hold this model.
    """
    path = Path(weights).expanduser() if weights is not None else locate(name)
    if not path.is_file():
        raise WeightsError(f"There is no file {path}, which should hold the weights of teacher '{name}'.")
    try:
        state: dict[str, Tensor] = timm.models.load_state_dict(str(path), weights_only=True)
        remap = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        state = remap(state, model) if remap else state
        missing = model.load_state_dict(state, strict=False).missing_keys  # what it holds beyond: heads, decoders
    except Exception as error:  # foreign and damaged files make PyTorch raise almost anything
        raise WeightsError(f"{path} cannot be read as weights of teacher '{name}': {error}") from error
    broken = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if missing or broken:
        what = f"{len(missing)} tensors are missing, {missing[0]} for one" if missing else f"{broken[0]} is not finite"
        raise WeightsError(f"{path} does not fit teacher '{name}': {what}.")
    return path


def is_published(name: str) -> bool:
    """Whether timm publishes weights under this name."""
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return bool(config and config.hf_hub_id)


def locate(name: str) -> Path:
    """The published weights on this machine, fetched from the hub into `home` if they are not there yet; verified.

    Raises:
        WeightsError: nothing is published under that name, it cannot be fetched, or the file is not what the hub has.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.hf_hub_id:
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise WeightsError(
            f"timm publishes no weights for '{name}'. "
            + (f"It does for {', '.join(tags)}." if tags else "Set weights to your file.")
        )
    download = partial(huggingface_hub.hf_hub_download, config.hf_hub_id, FILE, cache_dir=home() / "hub")
    try:
        path = Path(download(local_files_only=True))
    except huggingface_hub.errors.LocalEntryNotFoundError:
        print(f"Fetching {FILE} of {config.hf_hub_id} from {huggingface_hub.constants.ENDPOINT}")
        try:
            path = Path(download())
        except Exception as error:  # whatever of the network stack fails
            raise WeightsError(_missing(name, config.hf_hub_id, str(error))) from error
    published = path.resolve().name  # the hub's cache names a file by the SHA-256 that the hub has for it
    if len(published) == 64 and pooch.file_hash(str(path)) != published:
        raise WeightsError(
            f"{path.resolve()} is not what was published: its SHA-256 is another. Delete it, then: "
            f"nnunet-dg weights fetch {name}"
        )
    return path


def on_this_machine() -> list[tuple[str, Path]]:
    """Names and files of the published weights that have been fetched."""
    found = sorted((home() / "hub").glob(f"models--timm--*/snapshots/*/{FILE}"))
    return [(path.parents[2].name.removeprefix("models--timm--"), path) for path in found]


def _missing(name: str, repository: str, reason: str) -> str:
    return (
        f"The published weights of '{name}' could not be fetched ({reason}).\n"
        f"  They belong into:     {home() / 'hub'}\n"
        f"  Where there is internet, with the same NNUNET_DG_HOME:  nnunet-dg weights fetch {name}\n"
        f'  Or download {FILE} of {repository} from the hub, and set "weights" to that file in the plans.'
    )
