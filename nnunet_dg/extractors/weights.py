"""The cache of published weights: files are fetched once, verified, and kept in a folder that the user can choose.

That folder is ``NNUNET_DG_HOME``, or the platform's cache folder. A file is used only if its git blob id is the pinned
one, or if the user has installed it as unpublished. All files are read with ``weights_only=True``.
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
except ImportError:  # Windows, where open files cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class PublishedWeights:
    """A weights file as its authors published it."""

    name: str  # name of the extractor, also on the command line
    filename: str
    url: str
    git_blob: str  # id of the file in its git repository, which is verified
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
SECONDS_OF_SILENCE = 30  # a download without data for this long is aborted
SECONDS_IN_ALL = 3600.0  # a download that takes longer is aborted
LARGEST_DOWNLOAD = 2**30  # bytes; anatomix has 24 MB
FRESH = 5  # seconds; another process may be about to lock a partial file younger than this


def home() -> Path:
    """The folder for weights: ``NNUNET_DG_HOME`` if set, else the platform's cache folder.

    Raises:
        WeightsError: ``NNUNET_DG_HOME`` starts with ``~`` and the name of a user that does not exist.
    """
    chosen = os.environ.get("NNUNET_DG_HOME")
    return expanded(chosen) if chosen else platformdirs.user_cache_path("nnunet-dg")


def expanded(path: str | Path) -> Path:
    """The path with ``~`` replaced.

    Raises:
        WeightsError: There is no such user, or the path contains a NUL character.
    """
    if "\0" in str(path):
        raise WeightsError(f"{str(path)!r} is not a path: it contains a NUL character.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise WeightsError(f"{path} cannot be resolved: {error} Write the path without '~'.") from error


def published(name: str) -> PublishedWeights:
    """The published weights of an extractor, by its name.

    Raises:
        WeightsError: No weights are published under this name.
    """
    if name not in PUBLISHED:
        raise WeightsError(
            f"Weights can be fetched for {', '.join(PUBLISHED)} and ViTs of timm; got {name!r}. 'mind' needs none, and "
            f"'synthetic' includes them or is trained with nnunet-dg pretrain; for other extractors, "
            f"{SET_WEIGHTS} to your file."
        )
    return PUBLISHED[name]


def state(weights: PublishedWeights) -> str:
    """A description of the cached file: missing, published, installed as unpublished, or refused with the reason."""
    path = cached_path(weights)
    if not path.is_file():
        return "not on this machine"
    try:
        verify(path, weights, accepted_blobs(weights))
        blob = git_blob_id(path)
    except WeightsError as error:
        return f"REFUSED: {error}"
    return "published file" if blob == weights.git_blob else f"installed as unpublished (git blob {blob})"


def origin(name: str) -> str:
    """A description of where an extractor's default weights come from: `state`, or for `synthetic` this package."""
    return "included in nnunet-dg" if name == "synthetic" else state(published(name))


def cached_path(weights: PublishedWeights) -> Path:
    """The path of the file in the cache, whether or not it exists."""
    return home() / weights.filename


def locate(weights: PublishedWeights) -> Path:
    """The verified file in the cache, fetched if it is not there yet.

    Raises:
        WeightsError: The file cannot be fetched, or the cached file is neither the published nor an installed one.
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
        verify(path, weights)  # meanwhile another training has fetched it, and Windows does not replace open files
        return path


def fetch(weights: PublishedWeights) -> Path:
    """Download and verify the published file, and place it in the cache atomically.

    Raises:
        WeightsError: The download failed or was aborted, or the file is not the published one.
    """
    with _placing(weights) as partial:
        print(f"Fetching {weights.filename} from {weights.url}")
        try:
            _download(weights.url, partial)
            verify(partial, weights, called=weights.url)
        except (OSError, WeightsError) as error:  # requests' errors are OSErrors
            raise WeightsError(_missing(weights, str(error))) from None  # omit the libraries' long tracebacks
    return cached_path(weights)


def install(weights: PublishedWeights, source: Path, unpublished: bool = False) -> Path:
    """Copy a local file to the cache, where extractors expect it.

    Args:
        weights: Published weights that the file stands for.
        source: File to copy.
        unpublished: Whether to accept a file with the right layout that is not the published one, for example from
            your own training.

    Raises:
        WeightsError: The file is missing, truncated, of another network or, without ``unpublished``, not the published
            one; or the cache cannot be written to. An earlier file in the cache remains in use.
    """
    if not source.is_file():
        raise WeightsError(f"There is no file {source.absolute()}.")
    blob = git_blob_id(source)
    with _placing(weights) as partial:
        shutil.copyfile(source, partial)
        verify(partial, weights, {blob} if unpublished else (), called=source)
        if blob != weights.git_blob:  # written before the file is placed; notes of earlier files remain
            write_text(cached_path(weights).with_suffix(f".{blob}{NOTE}"), f"{blob}\n")
    return cached_path(weights)


def accepted_blobs(weights: PublishedWeights) -> set[str]:
    """The git blob ids of the unpublished files that the user has installed for ``weights``.

    Raises:
        WeightsError: A note in the format of a development version, with the id as its content, cannot be read.
    """
    final = cached_path(weights)
    blobs = {path.suffixes[-2].lstrip(".") for path in final.parent.glob(f"{final.stem}.*{NOTE}")}
    older = final.with_suffix(NOTE)
    try:
        return blobs | ({read_text(older).strip()} if older.is_file() else set())
    except DataError as error:
        raise WeightsError(f"{error} Or install the file again.") from error


def verify(path: Path, weights: PublishedWeights, accepted: Collection[str] = (), called: Path | str = "") -> None:
    """Refuse a file that is neither the published nor an accepted one, and say what is wrong with it.

    Args:
        path: File to check.
        weights: Expected weights.
        accepted: Git blob ids of other files that are accepted if they have the layout and plausible values.
        called: Name of the file in messages; by default ``path``.

    Raises:
        WeightsError: The file is truncated, of another network, or has been changed.
    """
    blob = git_blob_id(path)
    if blob == weights.git_blob:
        return
    called = called or path
    content = read(path, called)
    if problems := weights.layout_problems(content):
        raise WeightsError(f"{called} is a checkpoint of another network, not {weights.filename}: {problems}.")
    if problem := implausible(content):
        raise WeightsError(f"{called} does not contain trained weights: {problem}. Get the file again.")
    if blob not in accepted:
        raise WeightsError(
            f"{called} has the layout of {weights.filename}, but is not the published file: its git blob id is {blob} "
            f"instead of {weights.git_blob}. If it was changed, delete it and run: nnunet-dg weights fetch "
            f"{weights.name}. If it is from your own training, run: nnunet-dg weights install {weights.name} FILE, "
            f"with the option `unpublished`."
        )


def read(path: Path, called: Path | str = "") -> dict[str, Tensor]:
    """The state dict in a file, read with ``weights_only=True``.

    Args:
        path: File to read.
        called: Name of the file in messages; by default ``path``.

    Raises:
        WeightsError: The file is not a complete PyTorch file, or does not contain a state dict.
    """
    called = called or path
    if not path.is_file():
        raise WeightsError(f"There is no file {called}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises many types of exceptions for damaged archives
        raise WeightsError(f"{called} {_not_a_state_dict(path)}. Get the file again.") from error
    if isinstance(content, dict):
        content = {str(key).removeprefix("_orig_mod."): v for key, v in content.items()}  # added by torch.compile
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{called} does not contain a state dict (parameter names and tensors), but a {type(content).__name__}."
        )
    return content


def _not_a_state_dict(path: Path) -> str:
    """The reason why PyTorch cannot read a file as tensors only."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"<"):
        return "is a web page, not a weights file, for example from a proxy or a login"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the file itself"
    if zipfile.is_zipfile(path):
        return (
            "is damaged, or contains something other than tensors, such as NumPy arrays, Python objects or code, which "
            "cannot be read without running code"
        )
    if start.startswith(b"PK") or not start:
        return f"is truncated or damaged: PyTorch cannot read its {path.stat().st_size} bytes"
    return "is not a PyTorch file with only tensors: it is truncated, foreign, or asks to run code, which is refused"


def git_blob_id(path: Path) -> str:
    """The git blob id of a file: the SHA-1 of ``blob <size>\\0`` and the content."""
    try:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}.") from error
    return digest.hexdigest()


NOTE = ".unpublished"  # extension of the note that names an unpublished file which the user has accepted


@contextmanager
def _placing(weights: PublishedWeights) -> Iterator[Path]:
    """A temporary file next to the final one, which replaces it if the block succeeds, and is removed otherwise."""
    final = cached_path(weights)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        with replacing(final) as partial, partial.open("rb") as held:
            _lock(held)
            yield partial
            held.close()  # Windows does not move open files
    except OSError as error:
        raise WeightsError(
            f"{final} could not be written ({error}). Set NNUNET_DG_HOME to a folder that can be written to."
        ) from error


def _lock(file: IO[bytes]) -> bool:
    """Mark a partial file as in use until it is closed; False if another process has marked it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _sweep(final: Path) -> None:
    """Remove partial files of killed downloads, which are old and not locked."""
    for partial in final.parent.glob(f".{final.stem}.*.partial"):
        with suppress(OSError), partial.open("rb") as file:
            if time.time() - partial.stat().st_mtime > FRESH and _lock(file):
                file.close()
                partial.unlink()


class _Bounded:
    """A file for writing that aborts a download which is too large or takes too long."""

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
        """Do nothing; pooch calls it after each chunk."""


def _download(url: str, path: Path) -> None:
    with path.open("wb") as file:
        downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=2**12, timeout=SECONDS_OF_SILENCE)
        downloader(url, _Bounded(file), None)


def _missing(weights: PublishedWeights, reason: str) -> str:
    return (
        f"The published weights of '{weights.name}' could not be fetched ({reason}).\n"
        f"  Its path on this machine:  {cached_path(weights)}\n"
        f"  On a machine with internet access, download:  {weights.url}\n"
        f"  Then install it here:  nnunet-dg weights install {weights.name} FILE\n"
        f"  Or use features that need no download: for DropGen  -tr nnUNetTrainerDropGen_MIND,  for TinyMIG the "
        f'setting "teacher": "synthetic"'
    )
