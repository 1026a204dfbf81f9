import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from helpers import SUPPORT
from plain_anatomix import random_weights

from nnunet_dg.extractors import build_extractor
from nnunet_dg.extractors import weights as weight_files
from nnunet_dg.extractors.weights import WeightsError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("NNUNET_DG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path, anatomix_weights):
    torch.save(anatomix_weights, tmp_path / "local.pth")
    return tmp_path / "local.pth"


class Server:
    """Serves ``content``, or fails with ``status``, at any path on localhost, and counts the requests."""

    def __init__(self, content=b"", status=200, announced=None):
        server, self.requests = self, 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests += 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(content) if announced is None else announced))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/model-weights/anatomix.pth"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def published(file, url):
    """The pinned file as if ``file`` were what its authors published at ``url``."""
    return replace(weight_files.PUBLISHED["anatomix"], url=url, git_blob=weight_files.git_blob_id(file))


def test_pins_the_published_file():
    pinned = weight_files.PUBLISHED["anatomix"]
    assert pinned.git_blob == "d13b2f335850a0a3a9042dcaf9a7181631098b80"
    assert pinned.url == "https://github.com/neel-dey/anatomix/raw/a29b8a8/model-weights/anatomix.pth"


def test_git_blob_id_agrees_with_git(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"what is up, doc?")
    assert (
        weight_files.git_blob_id(path) == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    )  # the example of the Pro Git book
    git = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True)
    assert weight_files.git_blob_id(path) == git.stdout.strip()


def test_the_folder_is_the_users_choice_or_the_platforms_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NNUNET_DG_HOME", "~/weights")
    assert weight_files.home() == Path.home() / "weights"
    monkeypatch.delenv("NNUNET_DG_HOME")
    assert weight_files.home() == Path(platformdirs.user_cache_dir("nnunet-dg"))
    assert weight_files.home().is_absolute()


def test_weights_are_fetched_once_and_then_found_without_network(file, home, anatomix_weights, capsys):
    with Server(file.read_bytes()) as server:
        weights = published(file, server.url)
        assert weight_files.locate(weights) == home / "anatomix.pth"
        assert weight_files.locate(weights) == home / "anatomix.pth"
        assert server.requests == 1
    assert "100%" in capsys.readouterr().err  # the progress bar
    assert (home / "anatomix.pth").read_bytes() == file.read_bytes()
    assert weight_files.locate(weights) == home / "anatomix.pth"  # the server is gone
    assert [path.name for path in home.iterdir()] == ["anatomix.pth"]
    assert (home / "anatomix.pth").stat().st_mode & 0o044  # others may read it


def test_trainings_that_start_together_all_get_the_complete_file(file, home):
    with Server(file.read_bytes()) as server, ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: weight_files.locate(published(file, server.url)), range(4)))
    assert {path.read_bytes() for path in paths} == {file.read_bytes()}
    assert [path.name for path in home.iterdir()] == ["anatomix.pth"]


@pytest.mark.parametrize("how", ["refused", "missing", "cut off", "a login page", "another file", "no certificates"])
def test_a_failed_download_names_the_reason_the_path_and_what_to_do(how, file, home, tmp_path, monkeypatch):
    content = file.read_bytes()
    torch.save(random_weights(seed=5), tmp_path / "other.pth")
    served, status, announced, reason = {
        "refused": (b"", 200, None, "Connection refused"),
        "missing": (b"", 404, None, "404"),
        "cut off": (content[:1000], 200, len(content), "IncompleteRead"),
        "a login page": (b"<html>Please log in</html>", 200, None, "is a web page"),
        "another file": (
            (tmp_path / "other.pth").read_bytes(), 200, None,
            f"not the published file: its git blob id is {weight_files.git_blob_id(tmp_path / 'other.pth')}",
        ),
        "no certificates": (content, 200, None, "TLS CA certificate bundle"),
    }[how]  # fmt: skip
    if how == "no certificates":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with Server(served, status, announced) as server:
        url = "http://127.0.0.1:9/anatomix.pth" if how == "refused" else server.url
        if how == "no certificates":
            url = url.replace("http:", "https:")
        with pytest.raises(WeightsError) as caught:
            weight_files.locate(published(file, url))
    for part in (
        reason,
        url,
        str(home / "anatomix.pth"),
        "nnunet-dg weights install anatomix FILE",
        "nnUNetTrainerDropGen_MIND",
    ):
        assert part in str(caught.value)
    assert list(home.iterdir()) == []


def test_replacing_a_file_does_not_disturb_its_readers(file, tmp_path, anatomix_weights):
    weights = published(file, "")
    with weight_files.install(weights, file).open("rb") as reader:
        torch.save({key: value + 1 for key, value in anatomix_weights.items()}, tmp_path / "other.pth")
        weight_files.install(weights, tmp_path / "other.pth", unpublished=True)
        assert reader.read() == file.read_bytes()


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_another_training_placed_first_is_used_if_complete(file, home, monkeypatch, whole):
    """As on Windows, where a file that is being read cannot be replaced."""

    def placed_by_another(self, target):
        assert self.parent == target.parent  # on the same file system, so that moving is atomic
        target.write_bytes(self.read_bytes()[: None if whole else 1000])
        raise PermissionError(13, "Access is denied")

    with Server(file.read_bytes()) as server:
        weights = published(file, server.url)
        monkeypatch.setattr(Path, "replace", placed_by_another)
        if whole:
            assert weight_files.locate(weights) == home / "anatomix.pth"
        else:
            with pytest.raises(WeightsError, match="truncated"):
                weight_files.locate(weights)


def test_an_installed_file_is_used(file, home, anatomix_weights):
    weights = published(file, "http://127.0.0.1:9/")
    assert weight_files.install(weights, file) == home / "anatomix.pth"
    assert weight_files.locate(weights).read_bytes() == file.read_bytes()
    assert weight_files.state(weights) == "published file"


def test_an_unpublished_file_needs_an_option_and_is_listed_as_such(file, home, anatomix_weights):
    pinned = weight_files.PUBLISHED["anatomix"]
    with pytest.raises(WeightsError, match=r"weights install anatomix FILE, with the option `unpublished`"):
        weight_files.install(pinned, file)
    assert list(home.iterdir()) == []
    weight_files.install(pinned, file, unpublished=True)
    assert weight_files.state(pinned) == f"installed as unpublished (git blob {weight_files.git_blob_id(file)})"
    extractor, expected = build_extractor("anatomix"), build_extractor("anatomix", weights=file)
    assert all(torch.equal(a, b) for a, b in zip(extractor.parameters(), expected.parameters(), strict=True))


def test_a_cached_file_that_was_changed_is_refused(file, home):
    weights = published(file, "http://127.0.0.1:9/")
    weight_files.install(weights, file)
    torch.save(random_weights(seed=9), home / "anatomix.pth")
    with pytest.raises(WeightsError, match="If it was changed, delete it and run: nnunet-dg weights fetch anatomix"):
        weight_files.locate(weights)
    assert weight_files.state(weights).startswith("REFUSED")


def test_an_unpublished_file_that_was_changed_is_refused_too(file, home):
    weight_files.install(weight_files.PUBLISHED["anatomix"], file, unpublished=True)
    torch.save(random_weights(seed=9), home / "anatomix.pth")
    with pytest.raises(WeightsError, match="not the published file"):
        build_extractor("anatomix")


def test_the_published_file_replaces_an_unpublished_one(file, home, tmp_path):
    torch.save(random_weights(seed=3), tmp_path / "mine.pth")
    with Server(file.read_bytes()) as server:
        weights = published(file, server.url)
        weight_files.install(weights, tmp_path / "mine.pth", unpublished=True)
        assert weight_files.state(weights).startswith("installed as unpublished")
        weight_files.fetch(weights)
    assert weight_files.state(weights) == "published file"
    assert weight_files.locate(weights).read_bytes() == file.read_bytes()


def test_damage_anywhere_in_a_file_is_detected(file, tmp_path):
    content = file.read_bytes()
    for position in range(0, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[position : position + 64] = bytes(255 - b for b in damaged[position : position + 64])
        (tmp_path / "damaged.pth").write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"damaged\.pth"):
            weight_files.install(weight_files.PUBLISHED["anatomix"], tmp_path / "damaged.pth")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_a_file_without_read_permission_is_named(file):
    file.chmod(0)
    with pytest.raises(WeightsError, match="cannot be read"):
        weight_files.install(weight_files.PUBLISHED["anatomix"], file)


def test_folders_are_refused_as_weights_files(home, tmp_path):
    (home / "anatomix.pth").mkdir(parents=True)
    with pytest.raises(WeightsError, match="There is no file"):
        build_extractor("anatomix", weights=tmp_path)
    with Server(b"x") as server, pytest.raises(WeightsError):
        weight_files.locate(replace(weight_files.PUBLISHED["anatomix"], url=server.url))


@pytest.mark.parametrize("unpublished", [False, True])
def test_truncated_foreign_and_dangerous_files_are_refused_by_name(unpublished, file, home, tmp_path, anatomix_weights):
    def refused(name, content, match):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(WeightsError, match=match) as caught:
            weight_files.install(weight_files.PUBLISHED["anatomix"], path, unpublished=unpublished)
        assert str(path) in str(caught.value)

    refused("half.pth", file.read_bytes()[: file.stat().st_size // 2], "truncated")
    refused("empty.pth", b"", "truncated")
    refused("dev.pth", random_weights("anatomix-dev"), "checkpoint of another network, not anatomix.pth: ")
    refused("nnunet.pth", {"network_weights": {}, "trainer_name": "nnUNetTrainer"}, "does not contain a state dict")
    refused("list.pth", [torch.zeros(1)], "does not contain a state dict .* but a list")
    refused("numpy.pth", {"weight": np.zeros(1)}, "contains something other than tensors, such as NumPy arrays")
    refused("code.pth", pickle.dumps(_Dangerous()), "asks to run code")
    refused("pointer.pth", b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer")
    assert not _Dangerous.ran
    with pytest.raises(WeightsError, match="There is no file"):
        weight_files.install(weight_files.PUBLISHED["anatomix"], tmp_path / "absent.pth", unpublished=unpublished)
    assert not home.exists() or list(home.iterdir()) == []


class _Dangerous:
    ran = False

    def __reduce__(self):
        return (setattr, (_Dangerous, "ran", True))


def test_explicit_weights_of_the_wrong_network_are_refused(tmp_path):
    torch.save(random_weights("anatomix-dev"), tmp_path / "dev.pth")
    with pytest.raises(WeightsError, match=r"dev\.pth does not match extractor 'anatomix'"):
        build_extractor("anatomix", weights=tmp_path / "dev.pth")
    with pytest.raises(WeightsError, match=r'no file .*absent\.pth, .* value of weights.*plans\["nnunet_dg"\]'):
        build_extractor("anatomix", weights=tmp_path / "absent.pth")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, file):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("NNUNET_DG_HOME", str(tmp_path / "occupied" / "below"))
    with pytest.raises(WeightsError, match="Set NNUNET_DG_HOME to a folder that can"):
        weight_files.install(published(file, "http://127.0.0.1:9/"), file)


def test_downloaded_bytes_are_unchanged(tmp_path, home):
    content = bytes(range(256)) * 9999
    path = tmp_path / "blob"
    path.write_bytes(content)
    with Server(content) as server:
        weights = replace(published(path, server.url), layout_problems=lambda _: "")
        assert hashlib.sha256(weight_files.fetch(weights).read_bytes()).digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: {k: v * float("nan") if v.ndim > 1 else v for k, v in w.items()}, "not finite"),
        (lambda w: {k: -v if k.endswith("running_var") else v for k, v in w.items()}, "negative variance"),
        (lambda w: {k: v.bool() for k, v in w.items()}, "has bool values"),
        (lambda w: {k: v.to(torch.complex64) for k, v in w.items()}, "has complex64 values"),
        (lambda w: {k: v.to("meta") for k, v in w.items()}, "is a meta tensor"),
        (lambda w: {k: v * 1e30 if v.ndim > 1 else v for k, v in w.items()}, "has a value of"),
        (lambda w: {k: v.to_sparse() if v.ndim > 1 else v for k, v in w.items()}, "is a sparse or nested tensor"),
    ],
)
def test_implausible_weights_are_not_installed(change, problem, home, tmp_path, anatomix_weights):
    torch.save(change(anatomix_weights), tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=rf"bad\.pth does not contain trained weights: model\.\S+ .*{problem}"):
        weight_files.install(weight_files.PUBLISHED["anatomix"], tmp_path / "bad.pth", unpublished=True)
    assert not list(home.iterdir())


def test_after_a_failed_installation_the_earlier_file_remains_in_use(file, home, tmp_path, monkeypatch):
    pinned = weight_files.PUBLISHED["anatomix"]
    weight_files.install(pinned, file, unpublished=True)
    torch.save(random_weights(seed=8), tmp_path / "other.pth")
    replace_file = Path.replace

    def refuse_weights(self, target):
        if target.suffix == ".pth":
            raise PermissionError(1, "Operation not permitted")
        return replace_file(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse_weights)
        with pytest.raises(WeightsError, match="could not be written"):
            weight_files.install(pinned, tmp_path / "other.pth", unpublished=True)
    assert weight_files.state(pinned).startswith("installed as unpublished")
    assert weight_files.locate(pinned).read_bytes() == file.read_bytes()
    assert not list(home.glob(".*.partial"))
    weight_files.install(pinned, tmp_path / "other.pth", unpublished=True)
    assert weight_files.locate(pinned).read_bytes() == (tmp_path / "other.pth").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("after", [1, 2])
def test_a_killed_installation_leaves_either_the_old_file_or_the_new_one(after, file, home, tmp_path):
    pinned = weight_files.PUBLISHED["anatomix"]
    weight_files.install(pinned, file, unpublished=True)
    torch.save(random_weights(seed=8), tmp_path / "other.pth")
    command = [sys.executable, SUPPORT / "killed_while_installing.py", tmp_path / "other.pth", str(after)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert weight_files.locate(pinned).read_bytes() == (file if after == 1 else tmp_path / "other.pth").read_bytes()


def test_notes_of_development_versions_are_still_read(file, home):
    pinned = weight_files.PUBLISHED["anatomix"]
    weight_files.install(pinned, file, unpublished=True)
    (note,) = home.glob("*.unpublished")
    note.rename(home / "anatomix.unpublished")
    assert weight_files.state(pinned).startswith("installed as unpublished")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_installed_files_in_a_shared_folder_are_readable_for_others(file, home):
    home.mkdir()
    home.chmod(0o775)
    before = os.umask(0o077)
    try:
        weight_files.install(weight_files.PUBLISHED["anatomix"], file, unpublished=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o664}


def test_partial_files_of_killed_downloads_are_removed_and_those_of_running_ones_kept(file, home):
    home.mkdir()
    left, running = (home / f".anatomix.pth.{name}.partial" for name in ("0000", "1111"))
    for path in (left, running):
        path.write_bytes(b"part")
        os.utime(path, (time.time() - 60,) * 2)
    with running.open("rb") as held:
        assert weight_files._lock(held)
        weight_files.install(weight_files.PUBLISHED["anatomix"], file, unpublished=True)
        assert not left.exists()
        assert running.exists() or os.name != "posix"


class _Endless(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        while not self.server.ended.is_set():
            if not self.path.startswith("/silent"):
                self.wfile.write(bytes(2**16))
            elif self.server.ended.wait(0.05):
                return

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("path", "limit", "reason"),
    [
        ("endless", {"LARGEST_DOWNLOAD": 10**6}, "did not end after 1,000,000 bytes"),
        ("endless", {"SECONDS_IN_ALL": 0.2, "LARGEST_DOWNLOAD": 10**12}, "took more than 0 seconds"),
        ("silent", {"SECONDS_OF_SILENCE": 0.2}, "timed out"),
    ],
)
def test_endless_downloads_are_aborted(path, limit, reason, file, home, monkeypatch):
    for name, value in limit.items():
        monkeypatch.setattr(weight_files, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    server.ended, server.daemon_threads = threading.Event(), True
    server.handle_error = lambda *_: None  # ignore errors after the client has disconnected
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(WeightsError, match=reason):
            weight_files.fetch(published(file, f"http://127.0.0.1:{server.server_port}/{path}"))
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("chosen", ["~nobody-of-this-name/x", "a\0b"])
def test_invalid_paths_are_refused(chosen):
    with pytest.raises(WeightsError, match=r"cannot be resolved|not a path"):
        build_extractor("anatomix", weights=chosen)


def test_weights_error_is_the_projects_error_class():
    from nnunet_dg import errors

    assert WeightsError is errors.WeightsError
    assert issubclass(WeightsError, RuntimeError)
