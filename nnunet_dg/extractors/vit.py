"""ViTs of timm, by name: built without weights, filled from a file or from the hub, whose files are kept and verified.

timm is imported where it is used: it takes a second, and few trainings need it.
"""

from __future__ import annotations

import argparse
import difflib
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pooch
import torch
from torch import Tensor, nn

from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.extractors.plausible import implausible
from nnunet_dg.extractors.weights import WeightsError, git_blob_id, home
from nnunet_dg.extras import require
from nnunet_dg.files import read_text, write_text

FILE = "model.safetensors"
TIMEOUT_S = 30  # for every answer of the hub
PLACES = ("state_dict", "model_state_dict", "model", "teacher")  # where trainings keep the weights; DINO's: teacher
PREFIXES = ("module.", "_orig_mod.", "backbone.")  # what DDP, compilation and DINO put before the names


def _require() -> None:
    require("teachers", "A ViT of timm")


def check_name(name: str) -> None:
    """Raises a SettingsError if timm has no such model, and an ExtraError if timm is not installed."""
    _require()
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        raise SettingsError(
            f"teacher must be anatomix, nnunet, or the name of a ViT in timm; got {name!r}."
            + (f" Close to it: {', '.join(close)}." if close else "")
        )


def build(name: str, seed: int = 0) -> nn.Module:
    """The ViT, with random weights from ``seed``, for images of any size that its patches divide.

    Raises:
        SettingsError: timm has no such model, or it is not a ViT, or takes a single image size only.
    """
    _require()
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
        fits = last.shape == (1, width(model), 2, 3) and all(hasattr(block, "mlp") for block in model.blocks)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        fits = False
    if not fits:
        raise SettingsError(
            f"timm's {name} is not a ViT that takes images of any size. Most of vit_*, deit_* and samvit_* do."
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
    state = _read(path, name)
    try:
        remap = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        state = remap(state, model) if remap else state
        if problem := implausible({key: state[key] for key in model.state_dict() if key in state}):
            raise WeightsError(problem)
        missing = model.load_state_dict(state, strict=False).missing_keys  # what it holds beyond: heads, decoders
    except Exception as error:  # foreign files make timm and PyTorch raise almost anything
        raise WeightsError(f"{path} does not hold weights of teacher '{name}': {_shortened(error)}") from error
    if missing:
        raise WeightsError(
            f"{path} does not fit teacher '{name}': {len(missing)} tensors are missing, {missing[0]} for one."
        )
    return path


def _read(path: Path, name: str) -> dict[str, Tensor]:
    """The state dict in a file, or where trainings keep it, without the prefixes that they put before names.

    Read here, because timm's reader falls back to one that runs code.
    """
    _require()
    import safetensors.torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options of MAE, RETFound, DINO
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(path, name, error)) from error
    except Exception as error:  # damaged files make PyTorch raise almost anything
        raise WeightsError(
            f"{path} cannot be read as weights of teacher '{name}': {_shortened(error)} Get the file again."
        ) from error
    place = next((key for key in PLACES if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)), "")
    state = content[place] if place else content
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"{path} cannot be read as weights of teacher '{name}': it holds a {type(state).__name__}, and should hold "
            f"names and tensors, or these in an entry {', '.join(PLACES)}."
        )
    return _without_prefixes({key: value for key, value in state.items() if isinstance(value, Tensor)})


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``backbone.blocks.0... -> blocks.0...``; what is outside a prefixed part, such as DINO's head, is left out."""
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def _refused(path: Path, name: str, error: Exception) -> str:
    """What to do with a file that holds more than PyTorch reads without running code."""
    if not zipfile.is_zipfile(path):
        return (
            f"{path} cannot be read as weights of teacher '{name}': it is truncated, not a PyTorch file, or asks to "
            f"run code, which is refused. Get the file again."
        )
    named = re.search(r"(?:GLOBAL|class) ([\w.]+\.\w+)", str(error))
    what = named[1] if named else "unnamed"
    return (
        f"{path} cannot be read as weights of teacher '{name}': it holds objects of a program next to the weights "
        f"({what}); to read those means to run code, which is refused. If you trust the file, save its weights "
        f"separately:\n"
        f'  python -c "import torch; torch.save(torch.load(FILE, weights_only=False)[ENTRY], NEW)"\n'
        f"with ENTRY one of {', '.join(map(repr, PLACES))}, and set weights to NEW."
    )


def _shortened(error: Exception, most: int = 200) -> str:
    """The first line of an error's text: PyTorch's go on for pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def is_published(name: str) -> bool:
    """Whether timm publishes weights under this name."""
    return bool(_repository(name))


def locate(name: str) -> Path:
    """The published weights on this machine, fetched from the hub into `home` if they are not there yet; verified.

    What counts as published is what the hub says when the file is fetched: its hash is kept, and compared ever after.

    Raises:
        WeightsError: nothing is published under that name, it cannot be fetched, or the file is not what the hub had.
    """
    _require()
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
        url = huggingface_hub.hf_hub_url(repository, FILE)
        try:
            published = huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT_S).etag
            _note(repository).parent.mkdir(parents=True, exist_ok=True)
            write_text(_note(repository), f"{published}\n")  # before the file is there, so that it never is without
            path = Path(download(etag_timeout=TIMEOUT_S))
        except Exception as error:  # whatever of the network stack fails
            raise WeightsError(_missing(name, repository, str(error))) from error
    _verify(path, _note(repository), name)
    return path


def on_this_machine() -> list[tuple[str, Path]]:
    """Names and files of the published weights that have been fetched."""
    found = sorted((home() / "hub").glob(f"models--timm--*/snapshots/*/{FILE}"))
    return [(path.parents[2].name.removeprefix("models--timm--"), path) for path in found]


def _repository(name: str) -> str | None:
    _require()
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
    try:
        published = read_text(note).strip()
    except DataError:  # missing or damaged
        published = ""
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
        f"  They belong in:       {home() / 'hub'}\n"
        f"  Where there is internet, with the same NNUNET_DG_HOME:  nnunet-dg weights fetch {name}\n"
        f'  Or download {FILE} of {repository} from the hub, and set "weights" to that file in the plans.'
    )
