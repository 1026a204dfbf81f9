"""The weights room: fetches published weights once, verifies them, and keeps them where the user wants them.

Files lie in ``NNUNET_DG_HOME``, or in the platform's cache folder. A file is used only if its git blob id is the pinned
one, or if the user installed it by name as unpublished. Everything is read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs
import pooch
import torch
from torch import Tensor

from nnunet_dg.errors import DataError, WeightsError
from nnunet_dg.extractors.anatomix import VARIANTS, layout_problems
from nnunet_dg.extractors.plausible import implausible
from nnunet_dg.files import read_text, replacing, write_text

try:
    import fcntl
except ImportError:  # Windows, where a file that is open is not deleted
    fcntl = None  # type: ignore[assignment]


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
SECONDS_OF_SILENCE = 30  # after which a download is given up
SECONDS_IN_ALL = 3600.0
LARGEST_DOWNLOAD = 2**30  # bytes; anatomix has 24 MB
FRESH = 5  # seconds: a partial file younger than this may be one that another process is about to lock


def home() -> Path:
    """Where weights live: ``NNUNET_DG_HOME`` if set, else the platform's cache folder.

    Raises:
        WeightsError: ``NNUNET_DG_HOME`` names the home folder of a user that does not exist.
    """
    chosen = os.environ.get("NNUNET_DG_HOME")
    return expanded(chosen) if chosen else platformdirs.user_cache_path("nnunet-dg")


def expanded(path: str | Path) -> Path:
    """The path with ``~`` replaced.

    Raises:
        WeightsError: there is no such user, or the path holds a NUL character.
    """
    if "\0" in str(path):
        raise WeightsError(f"{str(path)!r} is not a path: it holds a NUL character.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise WeightsError(f"{path} cannot be resolved: {error} Write the path without '~'.") from error


def published(name: str) -> PublishedWeights:
    """The weights of an extractor by its name.

    Raises:
        WeightsError: nothing is published under that name.
    """
    if name not in PUBLISHED:
        raise WeightsError(
            f"Weights are fetched for {', '.join(PUBLISHED)} and ViTs of timm; got {name!r}. 'mind' needs none; for "
            f"another extractor, {SET_WEIGHTS} to your file."
        )
    return PUBLISHED[name]


def state(weights: PublishedWeights) -> str:
    """In words: not here, published, installed as unpublished, or what is wrong with the file."""
    path = cached_path(weights)
    if not path.is_file():
        return "not on this machine"
    try:
        verify(path, weights, accepted_blobs(weights))
        blob = git_blob_id(path)
    except WeightsError as error:
        return f"REFUSED: {error}"
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
        verify(path, weights, accepted_blobs(weights))
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
        WeightsError: the download failed or did not end, or what arrived is not the published file.
    """
    with _placing(weights) as partial:
        print(f"Fetching {weights.filename} from {weights.url}")
        try:
            _download(weights.url, partial)
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
        WeightsError: the file is missing, truncated, foreign or, without ``unpublished``, not the published one; or it
            cannot be written. The file that was there before is then used as before.
    """
    if not source.is_file():
        raise WeightsError(f"There is no file {source.absolute()}.")
    blob = git_blob_id(source)
    with _placing(weights) as partial:
        shutil.copyfile(source, partial)
        verify(partial, weights, {blob} if unpublished else (), called=source)
        if blob != weights.git_blob:  # before the file takes its place, and next to the notes of earlier files
            write_text(cached_path(weights).with_suffix(f".{blob}{NOTE}"), f"{blob}\n")
    return cached_path(weights)


def accepted_blobs(weights: PublishedWeights) -> set[str]:
    """The git blob ids of the unpublished files that the user installed for ``weights``.

    Raises:
        WeightsError: the note of a development version, which kept the id inside, cannot be read.
    """
    final = cached_path(weights)
    blobs = {path.suffixes[-2].lstrip(".") for path in final.parent.glob(f"{final.stem}.*{NOTE}")}
    older = final.with_suffix(NOTE)
    try:
        return blobs | ({read_text(older).strip()} if older.is_file() else set())
    except DataError as error:
        raise WeightsError(f"{error} Or install the file again.") from error


def verify(path: Path, weights: PublishedWeights, accepted: Collection[str] = (), called: Path | str = "") -> None:
    """Refuse a file that is neither the published nor an accepted one, by name of what is wrong with it.

    Args:
        path: the file.
        weights: what it should be.
        accepted: git blob ids of other files that are fine as well, if they have the layout and plausible values.
        called: how the messages name the file; default ``path``.

    Raises:
        WeightsError: truncated, foreign, or tampered with.
    """
    blob = git_blob_id(path)
    if blob == weights.git_blob:
        return
    called = called or path
    content = read(path, called)
    if problems := weights.layout_problems(content):
        raise WeightsError(f"{called} is a checkpoint of another network, not {weights.filename}: {problems}.")
    if problem := implausible(content):
        raise WeightsError(f"{called} does not hold trained weights: {problem}. Get the file again.")
    if blob not in accepted:
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
    if isinstance(content, dict):
        content = {str(key).removeprefix("_orig_mod."): value for key, value in content.items()}  # torch.compile's
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


NOTE = ".unpublished"  # ends the name of the note that says which unpublished file the user accepted


@contextmanager
def _placing(weights: PublishedWeights) -> Iterator[Path]:
    """A temporary file next to the final one; it takes the final name if the block succeeds, and goes if not."""
    final = cached_path(weights)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        with replacing(final) as partial, partial.open("rb") as held:
            _lock(held)
            yield partial
            held.close()  # Windows moves no file that is open
    except OSError as error:
        raise WeightsError(
            f"{final} could not be written ({error}). Set NNUNET_DG_HOME to a folder that can be written to."
        ) from error


def _lock(file: IO[bytes]) -> bool:
    """Mark a partial file as in use until it is closed; False where another process has marked it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _sweep(final: Path) -> None:
    """Remove the partial files of downloads that were killed: old enough to be locked, and not locked."""
    for partial in final.parent.glob(f".{final.stem}.*.partial"):
        with suppress(OSError), partial.open("rb") as file:
            if time.time() - partial.stat().st_mtime > FRESH and _lock(file):
                file.close()
                partial.unlink()


class _Bounded:
    """A file for writing that ends a download which is too large, or lasts too long."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.start = file, 0, time.monotonic()

    def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > LARGEST_DOWNLOAD:
            raise OSError(f"the download did not end after {LARGEST_DOWNLOAD:,} bytes")
        if time.monotonic() - self.start > SECONDS_IN_ALL:
            raise OSError(f"the download took more than {SECONDS_IN_ALL:.0f} seconds")
        self.file.write(chunk)

    def flush(self) -> None:
        """Not after each chunk, as pooch asks for."""


def _download(url: str, path: Path) -> None:
    with path.open("wb") as file:
        downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=2**12, timeout=SECONDS_OF_SILENCE)
        downloader(url, _Bounded(file), None)


def _missing(weights: PublishedWeights, reason: str) -> str:
    return (
        f"The published weights of '{weights.name}' could not be fetched ({reason}).\n"
        f"  The file belongs at:  {cached_path(weights)}\n"
        f"  Where there is internet, download {weights.url}\n"
        f"  and install it here:  nnunet-dg weights install {weights.name} FILE\n"
        f"  Or train DropGen without any weights:  -tr nnUNetTrainerDropGen_MIND"
    )
