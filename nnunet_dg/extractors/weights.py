"""The weights room: fetches published weights once, verifies them, and keeps them where the user wants them.

Files lie in ``NNUNET_DG_HOME``, or in the platform's cache folder. A file is used only if its git blob id is the pinned
one, or if the user installed it by name as unpublished. Everything is read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import pooch
import torch
from torch import Tensor

from nnunet_dg.extractors.anatomix import VARIANTS, layout_problems


@dataclass(frozen=True)
class PublishedWeights:
    """A weights file as its authors published it."""

    name: str  # the extractor, and the name that users type
    filename: str
    url: str
    git_blob: str  # id of the file in its git repository: what is verified
    layout_problems: Callable[[dict[str, Tensor]], str]


PUBLISHED = {
    "anatomix": PublishedWeights(
        name="anatomix",
        filename="anatomix.pth",
        url="https://github.com/neel-dey/anatomix/raw/a29b8a8/model-weights/anatomix.pth",
        git_blob="d13b2f335850a0a3a9042dcaf9a7181631098b80",
        layout_problems=lambda weights: layout_problems(VARIANTS["anatomix"], weights),
    )
}


SET_WEIGHTS = 'set weights in plans["nnunet_dg"]["dropgen"] (for a teacher: ["tinymig"])'


class WeightsError(RuntimeError):
    """Weights are missing and cannot be fetched, or a file is not what it should be."""


def home() -> Path:
    """Where weights live: ``NNUNET_DG_HOME`` if set, else the platform's cache folder."""
    chosen = os.environ.get("NNUNET_DG_HOME")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("nnunet-dg")


def published(name: str) -> PublishedWeights:
    """The weights of an extractor by its name.

    Raises:
        WeightsError: nothing is published under that name.
    """
    if name not in PUBLISHED:
        raise WeightsError(
            f"Weights are published for {', '.join(PUBLISHED)} and ViTs of timm; got {name!r}. 'mind' needs "
            f"none; for another extractor, {SET_WEIGHTS} to your file."
        )
    return PUBLISHED[name]


def state(weights: PublishedWeights) -> str:
    """In words: not here, published, installed as unpublished, or what is wrong with the file."""
    path = cached_path(weights)
    if not path.is_file():
        return "not on this machine"
    try:
        verify(path, weights, accepted_blob(weights))
    except WeightsError as error:
        return f"REFUSED: {error}"
    blob = git_blob_id(path)
    return "published file" if blob == weights.git_blob else f"installed as unpublished (git blob {blob})"


def cached_path(weights: PublishedWeights) -> Path:
    """Where the file belongs, whether or not it is there."""
    return home() / weights.filename


def locate(weights: PublishedWeights) -> Path:
    """The verified file on this machine, fetched if it is not there yet.

    Raises:
        WeightsError: it cannot be fetched, or the file that is there is not what was published or installed.
    """
    path = cached_path(weights)
    if path.is_file():
        verify(path, weights, accepted=accepted_blob(weights))
        return path
    try:
        return fetch(weights)
    except WeightsError:
        if not path.is_file():
            raise
        verify(path, weights)  # another training has fetched it meanwhile; Windows lets nobody replace it then
        return path


def fetch(weights: PublishedWeights) -> Path:
    """Download, verify and place the published file, atomically: others see all of it or nothing.

    Raises:
        WeightsError: the download failed, or what arrived is not the published file.
    """
    with _placing(weights) as partial:
        print(f"Fetching {weights.filename} from {weights.url}")
        try:
            pooch.HTTPDownloader(progressbar=True, chunk_size=2**16)(weights.url, str(partial), None)
            verify(partial, weights, called=weights.url)
        except (OSError, WeightsError) as error:  # requests' errors are OSErrors
            raise WeightsError(_missing(weights, str(error))) from None  # four tracebacks of libraries would hide it
    return cached_path(weights)


def install(weights: PublishedWeights, source: Path, unpublished: bool = False) -> Path:
    """Place a local file where extractors look for it.

    Args:
        weights: whose place it takes.
        source: the file.
        unpublished: accept a file of the right layout that is not the published one (your own training, for example).

    Raises:
        WeightsError: the file is missing, truncated, foreign or, without ``unpublished``, not the published one.
    """
    if not source.is_file():
        raise WeightsError(f"There is no file {source.absolute()}.")
    blob = git_blob_id(source)
    with _placing(weights) as partial:
        shutil.copyfile(source, partial)
        verify(partial, weights, accepted=blob if unpublished else None, called=source)
        if blob != weights.git_blob:
            _note_path(weights).write_text(blob + "\n")
    return cached_path(weights)


def accepted_blob(weights: PublishedWeights) -> str | None:
    """The git blob id of the last unpublished file that the user installed for ``weights``, if any."""
    note = _note_path(weights)
    return note.read_text().strip() if note.is_file() else None


def verify(path: Path, weights: PublishedWeights, accepted: str | None = None, called: Path | str = "") -> None:
    """Refuse a file that is neither the published nor the accepted one, by name of what is wrong with it.

    Args:
        path: the file.
        weights: what it should be.
        accepted: git blob id of another file that is fine as well, if it has the layout.
        called: how the messages name the file; default ``path``.

    Raises:
        WeightsError: truncated, foreign, or tampered with.
    """
    blob = git_blob_id(path)
    if blob == weights.git_blob:
        return
    called = called or path
    if problems := weights.layout_problems(read(path, called)):
        raise WeightsError(f"{called} is a checkpoint of another network, not {weights.filename}: {problems}.")
    if blob != accepted:
        raise WeightsError(
            f"{called} has the layout of {weights.filename}, but it is not the published file: its git blob id is "
            f"{blob}, published is {weights.git_blob}. Either it was changed (delete it, then: "
            f"nnunet-dg weights fetch {weights.name}), or it is your own training (then: nnunet-dg weights install "
            f"{weights.name} FILE --unpublished)."
        )


def read(path: Path, called: Path | str = "") -> dict[str, Tensor]:
    """The state dict in a file, read with ``weights_only=True``.

    Raises:
        WeightsError: not a complete PyTorch file, or not a state dict.
    """
    called = called or path
    if not path.is_file():
        raise WeightsError(f"There is no file {called}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive makes PyTorch raise almost anything
        raise WeightsError(f"{called} {_not_a_state_dict(path)}. Get the file again.") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{called} holds no state dict (parameter names and tensors), but a {type(content).__name__}."
        )
    return content


def _not_a_state_dict(path: Path) -> str:
    """In words, why PyTorch could not read a file as tensors alone."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"<"):
        return "is a web page, not a weights file: a proxy or a login answered the download"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the file itself"
    if zipfile.is_zipfile(path):
        return (
            "is damaged, or holds other things than tensors, such as NumPy arrays, objects of a program, or code; "
            "to read those means to run them, which is refused"
        )
    if start.startswith(b"PK") or not start:
        return f"is truncated or damaged: PyTorch cannot read its {path.stat().st_size} bytes"
    return "is not a PyTorch file of tensors alone: it is truncated, foreign, or asks to run code, which is refused"


def git_blob_id(path: Path) -> str:
    """What git calls this content: the SHA-1 of ``blob <size>\\0`` and the bytes."""
    try:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from error
    return digest.hexdigest()


def _note_path(weights: PublishedWeights) -> Path:
    return cached_path(weights).with_suffix(".unpublished")


@contextmanager
def _placing(weights: PublishedWeights) -> Iterator[Path]:
    """A temporary file beside the final one; it takes the final name if the block succeeds, and goes if not."""
    final = cached_path(weights)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=final.name, suffix=".partial")
    except OSError as error:
        raise WeightsError(
            f"{final.parent} cannot be written ({error}). Set NNUNET_DG_HOME to a folder that can."
        ) from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(final)
    except OSError as error:
        raise WeightsError(f"{final} could not be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _missing(weights: PublishedWeights, reason: str) -> str:
    return (
        f"The published weights of '{weights.name}' could not be fetched ({reason}).\n"
        f"  The file belongs at:  {cached_path(weights)}\n"
        f"  Where there is internet, download {weights.url}\n"
        f"  and install it here:  nnunet-dg weights install {weights.name} FILE\n"
        f"  Or train DropGen without any weights:  -tr nnUNetTrainerDropGen_MIND"
    )
