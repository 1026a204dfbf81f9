"""ViTs of timm by name. Weights are read from a file, or fetched from the hub, cached and verified.

timm is imported inside functions, because the import takes a second and few trainings need it.
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
TIMEOUT_S = 30  # for each response of the hub, in seconds
ENTRIES = ("state_dict", "model_state_dict", "model", "teacher")  # where trainings store the weights; "teacher" in DINO
PREFIXES = ("module.", "_orig_mod.", "backbone.")  # that DDP, torch.compile and DINO add to names


def _require() -> None:
    require("teachers", "A ViT of timm")


def check_name(name: str) -> None:
    """Check that timm has a model of this name.

    Raises:
        SettingsError: timm has no such model.
        ExtraError: timm is not installed.
    """
    _require()
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3)
        raise SettingsError(
            f"teacher must be anatomix, synthetic, nnunet, or the name of a ViT in timm; got {name!r}."
            + (f" Close to it: {', '.join(close)}." if close else "")
        )


def build(name: str, seed: int = 0) -> nn.Module:
    """A ViT with random weights from ``seed``, for images of any size that is a multiple of its patch size.

    Raises:
        SettingsError: timm has no such model, it is not a ViT, or it accepts only one image size.
    """
    _require()
    import timm

    check_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: Any
        try:
            model = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        except TypeError:  # SAM's ViTs always accept any size and lack this argument
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
            f"timm's {name} is not a ViT that takes images of any size. Choose another, for example one of vit_*, "
            f"deit_* or samvit_*, most of which do."
        )
    return model


def width(model: nn.Module) -> int:
    """Number of channels of every block."""
    return int(model.embed_dim)  # type: ignore[arg-type]


def patch_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of the patches, in pixels."""
    height, breadth = model.patch_embed.patch_size  # type: ignore[union-attr, misc]
    return int(height), int(breadth)


def mean_and_std(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, per RGB channel in [0, 1], of the images that the model was trained on."""
    config = model.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"])  # type: ignore[index]


def load(model: nn.Module, name: str, weights: str | Path | None = None) -> Path:
    """Load the weights of a ViT made by `build`.

    Args:
        model: ViT to fill.
        name: Name given to `build`.
        weights: Checkpoint file of timm, or as its authors published it, for example those of SAM and MedSAM; by
            default the file on the hub, see `locate`.

    Returns:
        The file used.

    Raises:
        WeightsError: The file is missing, cannot be fetched, or does not contain this model.
    """
    path = Path(weights).expanduser() if weights is not None else locate(name)
    if not path.is_file():
        raise WeightsError(f"There is no file {path} for the weights of teacher '{name}'. Set weights to another file.")
    state = _read(path, name)
    try:
        remap = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        state = remap(state, model) if remap else state
        if problem := implausible({key: state[key] for key in model.state_dict() if key in state}):
            raise WeightsError(problem)
        missing = model.load_state_dict(state, strict=False).missing_keys  # files may have heads and decoders too
    except Exception as error:  # timm and PyTorch raise many types of exceptions for foreign files
        raise WeightsError(f"{path} does not contain weights of teacher '{name}': {_shortened(error)}") from error
    if missing:
        raise WeightsError(
            f"{path} does not match teacher '{name}': {len(missing)} tensors are missing, for example {missing[0]}."
        )
    return path


def _read(path: Path, name: str) -> dict[str, Tensor]:
    """The state dict in a file or in one of `ENTRIES`, without `PREFIXES`.

    timm's own reader is not used, because it falls back to one that runs code.
    """
    _require()
    import safetensors.torch

    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options in files of MAE, RETFound and DINO
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(path, name, error)) from error
    except Exception as error:  # PyTorch raises many types of exceptions for damaged files
        raise WeightsError(
            f"{path} cannot be read as weights of teacher '{name}': {_shortened(error)} Get the file again."
        ) from error
    entry = next((key for key in ENTRIES if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)), "")
    state = content[entry] if entry else content
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"{path} cannot be read as weights of teacher '{name}': it contains a {type(state).__name__} instead of "
            f"names and tensors, which may also be in an entry {', '.join(ENTRIES)}."
        )
    return _without_prefixes({key: value for key, value in state.items() if isinstance(value, Tensor)})


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``backbone.blocks.0... -> blocks.0...``. Names without the prefix, such as those of DINO's head, are dropped."""
    while prefix := next((p for p in PREFIXES if any(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def _refused(path: Path, name: str, error: Exception) -> str:
    """The message for a file that PyTorch cannot read without running code."""
    if not zipfile.is_zipfile(path):
        return (
            f"{path} cannot be read as weights of teacher '{name}': it is truncated, not a PyTorch file, or asks to "
            f"run code, which is refused. Get the file again."
        )
    match = re.search(r"(?:GLOBAL|class) ([\w.]+\.\w+)", str(error))
    objects = match[1] if match else "unknown"
    return (
        f"{path} cannot be read as weights of teacher '{name}': in addition to weights it contains Python objects "
        f"({objects}), and reading them would run code. If you trust the file, save its weights separately:\n"
        f'  python -c "import torch; torch.save(torch.load(FILE, weights_only=False)[ENTRY], NEW)"\n'
        f"with ENTRY one of {', '.join(map(repr, ENTRIES))}, and set weights to NEW."
    )


def _shortened(error: Exception, most: int = 200) -> str:
    """The beginning of an error's text; PyTorch's messages can be pages long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def is_published(name: str) -> bool:
    """Whether timm publishes weights under this name."""
    return bool(_repository(name))


def locate(name: str) -> Path:
    """The verified file with the published weights, fetched from the hub into `home` if it is not there yet.

    The hub's hash is saved when the file is fetched, and the file is compared with it before every use.

    Raises:
        WeightsError: No weights are published under this name, they cannot be fetched, or the file has changed.
    """
    _require()
    import huggingface_hub
    import timm

    repository = _repository(name)
    if not repository:
        tags = timm.list_pretrained(f"{name.split('.')[0]}.*")
        raise WeightsError(
            f"timm publishes no weights for '{name}'. "
            + (f"It publishes {', '.join(tags)}." if tags else "Set weights to your file.")
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
            write_text(_note(repository), f"{published}\n")  # before the download, so that a file always has its hash
            path = Path(download(etag_timeout=TIMEOUT_S))
        except Exception as error:  # the network stack raises many types of exceptions
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
    except RuntimeError:  # the model exists, but has no weights with this tag
        return None
    return config.hf_hub_id if config else None


def _note(repository: str) -> Path:
    return home() / "hub" / f"{repository.replace('/', '--')}.published"


def _verify(path: Path, note: Path, name: str) -> None:
    """Compare a file with the hub's hash, which is the SHA-256 of large files and the git blob id of small ones."""
    try:
        published = read_text(note).strip()
    except DataError:  # missing or damaged
        published = ""
    own = git_blob_id(path) if len(published) == 40 else pooch.file_hash(str(path))
    if own != published:
        raise WeightsError(
            f"{path.resolve()} is not the published file: its hash is {own}, "
            + (f"the hub's was {published}." if published else f"and the hub's hash in {note} is missing or damaged.")
            + f" Delete it, then: nnunet-dg weights fetch {name}"
        )


def _missing(name: str, repository: str, reason: str) -> str:
    return (
        f"The published weights of '{name}' could not be fetched ({reason}).\n"
        f"  Their folder:  {home() / 'hub'}\n"
        f"  On a machine with internet access and the same NNUNET_DG_HOME, run:  nnunet-dg weights fetch {name}\n"
        f'  Or download {FILE} of {repository} from the hub, and set "weights" to that file in the plans.'
    )
