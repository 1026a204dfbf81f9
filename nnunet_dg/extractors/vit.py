"""ViTs of timm, by name: built without weights, filled from a file or from the hub, whose files are kept and verified.

timm is imported where it is used: it takes a second, and few trainings need it.
"""

from __future__ import annotations

import difflib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pooch
import torch
from torch import Tensor, nn

from nnunet_dg.extractors.weights import WeightsError, git_blob_id, home

FILE = "model.safetensors"


def check_name(name: str) -> None:
    """Raises a ValueError if timm has no such model."""
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        raise ValueError(
            f"teacher must be anatomix, nnunet, or the name of a ViT in timm; got {name!r}."
            + (f" Close to it: {', '.join(close)}." if close else "")
        )


def build(name: str, seed: int = 0) -> nn.Module:
    """The ViT, with random weights from ``seed``, for images of any size that its patches divide.

    Raises:
        ValueError: timm has no such model, or it is no ViT, or one for a single image size.
    """
    import timm

    check_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: Any
        try:
            model = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        except TypeError:  # SAM's ViTs take any size without being asked to
            model = timm.create_model(name, num_classes=0)
    try:
        height, breadth = patch_size(model)
        with torch.no_grad():
            (last,) = model.eval().forward_intermediates(
                torch.zeros(1, 3, 2 * height, 3 * breadth), indices=[len(model.blocks) - 1], intermediates_only=True
            )
        fits = last.shape == (1, width(model), 2, 3)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"timm's {name} is no ViT that takes images of any size. Most of vit_*, deit_* and samvit_* do."
        )
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
        state = _read(path)
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


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict, by itself or where trainings keep it; read by ourselves, for timm falls back to running code."""
    import safetensors.torch
    import timm

    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        content = content.get(key, content)
    state: dict[str, Tensor] = timm.models.clean_state_dict(content)
    return state


def is_published(name: str) -> bool:
    """Whether timm publishes weights under this name."""
    return bool(_repository(name))


def locate(name: str) -> Path:
    """The published weights on this machine, fetched from the hub into `home` if they are not there yet; verified.

    What counts as published is what the hub says when the file is fetched: its hash is kept, and compared ever after.

    Raises:
        WeightsError: nothing is published under that name, it cannot be fetched, or the file is not what the hub had.
    """
    import huggingface_hub
    import timm

    repository = _repository(name)
    if not repository:
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise WeightsError(
            f"timm publishes no weights for '{name}'. "
            + (f"It does for {', '.join(tags)}." if tags else "Set weights to your file.")
        )
    download = partial(huggingface_hub.hf_hub_download, repository, FILE, cache_dir=home() / "hub")
    try:
        path = Path(download(local_files_only=True))
    except huggingface_hub.errors.LocalEntryNotFoundError:
        print(f"Fetching {FILE} of {repository} from {huggingface_hub.constants.ENDPOINT}")
        try:
            published = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, FILE)).etag
            _note(repository).parent.mkdir(parents=True, exist_ok=True)
            _note(repository).write_text(f"{published}\n")  # before the file is there, so that it never is without
            path = Path(download())
        except Exception as error:  # whatever of the network stack fails
            raise WeightsError(_missing(name, repository, str(error))) from error
    _verify(path, _note(repository), name)
    return path


def on_this_machine() -> list[tuple[str, Path]]:
    """Names and files of the published weights that have been fetched."""
    found = sorted((home() / "hub").glob(f"models--timm--*/snapshots/*/{FILE}"))
    return [(path.parents[2].name.removeprefix("models--timm--"), path) for path in found]


def _repository(name: str) -> str | None:
    import timm

    try:
        config: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # the model exists, weights of that tag do not
        return None
    return config.hf_hub_id if config else None


def _note(repository: str) -> Path:
    return home() / "hub" / f"{repository.replace('/', '--')}.published"


def _verify(path: Path, note: Path, name: str) -> None:
    """The hub names a large file by its SHA-256, a small one by its git blob id."""
    published = note.read_text().strip() if note.is_file() else ""
    own = git_blob_id(path) if len(published) == 40 else pooch.file_hash(str(path))
    if own != published:
        raise WeightsError(
            f"{path.resolve()} is not what was published: its hash is {own}, "
            + (f"the hub's was {published}." if published else f"and {note} does not say what it should be.")
            + f" Delete it, then: nnunet-dg weights fetch {name}"
        )


def _missing(name: str, repository: str, reason: str) -> str:
    return (
        f"The published weights of '{name}' could not be fetched ({reason}).\n"
        f"  They belong into:     {home() / 'hub'}\n"
        f"  Where there is internet, with the same NNUNET_DG_HOME:  nnunet-dg weights fetch {name}\n"
        f'  Or download {FILE} of {repository} from the hub, and set "weights" to that file in the plans.'
    )
