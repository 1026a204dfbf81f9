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
from nnunet_dg.extractors import weights as room
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
    """Serves ``content`` (or fails with ``status``) under any path of localhost and counts the requests."""

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
    return replace(room.PUBLISHED["anatomix"], url=url, git_blob=room.git_blob_id(file))


def test_pins_the_published_file():
    pinned = room.PUBLISHED["anatomix"]
    assert pinned.git_blob == "d13b2f335850a0a3a9042dcaf9a7181631098b80"
    assert pinned.url == "https://github.com/neel-dey/anatomix/raw/a29b8a8/model-weights/anatomix.pth"


def test_git_blob_id_is_what_git_says(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"what is up, doc?")
    assert room.git_blob_id(path) == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"  # the example of the Pro Git book
    git = subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True)
    assert room.git_blob_id(path) == git.stdout.strip()


def test_lives_where_the_user_says_or_in_the_platforms_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NNUNET_DG_HOME", "~/weights")
    assert room.home() == Path.home() / "weights"
    monkeypatch.delenv("NNUNET_DG_HOME")
    assert room.home() == Path(platformdirs.user_cache_dir("nnunet-dg"))
    assert room.home().is_absolute()


def test_fetched_once_then_found_without_network(file, home, anatomix_weights, capsys):
    with Server(file.read_bytes()) as server:
        weights = published(file, server.url)
        assert room.locate(weights) == home / "anatomix.pth"
        assert room.locate(weights) == home / "anatomix.pth"
        assert server.requests == 1
    assert "100%" in capsys.readouterr().err  # the progress bar
    assert (home / "anatomix.pth").read_bytes() == file.read_bytes()
    assert room.locate(weights) == home / "anatomix.pth"  # the server is gone
    assert [path.name for path in home.iterdir()] == ["anatomix.pth"]
    assert (home / "anatomix.pth").stat().st_mode & 0o044  # others may read it, where a group shares the folder


def test_two_trainings_starting_together_both_get_the_whole_file(file, home):
    with Server(file.read_bytes()) as server, ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: room.locate(published(file, server.url)), range(4)))
    assert {path.read_bytes() for path in paths} == {file.read_bytes()}
    assert [path.name for path in home.iterdir()] == ["anatomix.pth"]


@pytest.mark.parametrize("how", ["refused", "missing", "cut off", "a login page", "another file", "no certificates"])
def test_blocked_says_where_the_file_belongs_and_what_to_do(how, file, home, tmp_path, monkeypatch):
    content = file.read_bytes()
    torch.save(random_weights(seed=5), tmp_path / "other.pth")
    served, status, announced, reason = {
        "refused": (b"", 200, None, "Connection refused"),
        "missing": (b"", 404, None, "404"),
        "cut off": (content[:1000], 200, len(content), "IncompleteRead"),
        "a login page": (b"<html>Please log in</html>", 200, None, "is a web page"),
        "another file": (
            (tmp_path / "other.pth").read_bytes(), 200, None,
            f"not the published file: its git blob id is {room.git_blob_id(tmp_path / 'other.pth')}",
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
            room.locate(published(file, url))
    for part in (
        reason,
        url,
        str(home / "anatomix.pth"),
        "nnunet-dg weights install anatomix FILE",
        "nnUNetTrainerDropGen_MIND",
    ):
        assert part in str(caught.value)
    assert list(home.iterdir()) == []


def test_others_see_all_of_a_file_or_nothing_of_it(file, tmp_path, anatomix_weights):
    weights = published(file, "")
    with room.install(weights, file).open("rb") as reader:
        torch.save({key: value + 1 for key, value in anatomix_weights.items()}, tmp_path / "other.pth")
        room.install(weights, tmp_path / "other.pth", unpublished=True)
        assert reader.read() == file.read_bytes()


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_another_training_placed_first_is_taken_if_it_is_whole(file, home, monkeypatch, whole):
    """As on Windows, where nobody replaces a file that somebody reads."""

    def placed_by_another(self, target):
        assert self.parent == target.parent  # one file system: a move is all or nothing
        target.write_bytes(self.read_bytes()[: None if whole else 1000])
        raise PermissionError(13, "Access is denied")

    with Server(file.read_bytes()) as server:
        weights = published(file, server.url)
        monkeypatch.setattr(Path, "replace", placed_by_another)
        if whole:
            assert room.locate(weights) == home / "anatomix.pth"
        else:
            with pytest.raises(WeightsError, match="truncated"):
                room.locate(weights)


def test_installed_by_hand_and_then_used(file, home, anatomix_weights):
    weights = published(file, "http://127.0.0.1:9/")
    assert room.install(weights, file) == home / "anatomix.pth"
    assert room.locate(weights).read_bytes() == file.read_bytes()
    assert room.state(weights) == "published file"


def test_an_unpublished_file_needs_the_word_and_is_named_as_such(file, home, anatomix_weights):
    pinned = room.PUBLISHED["anatomix"]
    with pytest.raises(WeightsError, match=r"weights install anatomix FILE --unpublished"):
        room.install(pinned, file)
    assert list(home.iterdir()) == []
    room.install(pinned, file, unpublished=True)
    assert room.state(pinned) == f"installed as unpublished (git blob {room.git_blob_id(file)})"
    extractor, expected = build_extractor("anatomix"), build_extractor("anatomix", weights=file)
    assert all(torch.equal(a, b) for a, b in zip(extractor.parameters(), expected.parameters(), strict=True))


def test_a_cached_file_that_was_changed_is_refused(file, home):
    weights = published(file, "http://127.0.0.1:9/")
    room.install(weights, file)
    torch.save(random_weights(seed=9), home / "anatomix.pth")
    with pytest.raises(WeightsError, match="Either it was changed"):
        room.locate(weights)
    assert room.state(weights).startswith("REFUSED")


def test_an_unpublished_file_that_was_changed_is_refused_too(file, home):
    room.install(room.PUBLISHED["anatomix"], file, unpublished=True)
    torch.save(random_weights(seed=9), home / "anatomix.pth")
    with pytest.raises(WeightsError, match="not the published file"):
        build_extractor("anatomix")


def test_the_published_file_replaces_an_unpublished_one(file, home, tmp_path):
    torch.save(random_weights(seed=3), tmp_path / "mine.pth")
    with Server(file.read_bytes()) as server:
        weights = published(file, server.url)
        room.install(weights, tmp_path / "mine.pth", unpublished=True)
        assert room.state(weights).startswith("installed as unpublished")
        room.fetch(weights)
    assert room.state(weights) == "published file"
    assert room.locate(weights).read_bytes() == file.read_bytes()


def test_damaged_bytes_anywhere_are_one_clear_error(file, tmp_path):
    content = file.read_bytes()
    for position in range(0, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[position : position + 64] = bytes(255 - b for b in damaged[position : position + 64])
        (tmp_path / "damaged.pth").write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"damaged\.pth"):
            room.install(room.PUBLISHED["anatomix"], tmp_path / "damaged.pth")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_says_so(file):
    file.chmod(0)
    with pytest.raises(WeightsError, match="cannot be read"):
        room.install(room.PUBLISHED["anatomix"], file)


def test_a_folder_is_no_file(home, tmp_path):
    (home / "anatomix.pth").mkdir(parents=True)
    with pytest.raises(WeightsError, match="There is no file"):
        build_extractor("anatomix", weights=tmp_path)
    with Server(b"x") as server, pytest.raises(WeightsError):
        room.locate(replace(room.PUBLISHED["anatomix"], url=server.url))


@pytest.mark.parametrize("unpublished", [False, True])
def test_truncated_foreign_and_dangerous_files_are_refused_by_name(unpublished, file, home, tmp_path, anatomix_weights):
    def refused(name, content, match):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(WeightsError, match=match) as caught:
            room.install(room.PUBLISHED["anatomix"], path, unpublished=unpublished)
        assert str(path) in str(caught.value)

    refused("half.pth", file.read_bytes()[: file.stat().st_size // 2], "truncated")
    refused("empty.pth", b"", "truncated")
    refused("dev.pth", random_weights("anatomix-dev"), "checkpoint of another network, not anatomix.pth: ")
    refused("nnunet.pth", {"network_weights": {}, "trainer_name": "nnUNetTrainer"}, "holds no state dict")
    refused("list.pth", [torch.zeros(1)], "holds no state dict .* but a list")
    refused("numpy.pth", {"weight": np.zeros(1)}, "holds other things than tensors, such as NumPy arrays")
    refused("code.pth", pickle.dumps(_Dangerous()), "asks to run code")
    refused("pointer.pth", b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer")
    assert not _Dangerous.ran
    with pytest.raises(WeightsError, match="There is no file"):
        room.install(room.PUBLISHED["anatomix"], tmp_path / "absent.pth", unpublished=unpublished)
    assert not home.exists() or list(home.iterdir()) == []


class _Dangerous:
    ran = False

    def __reduce__(self):
        return (setattr, (_Dangerous, "ran", True))


def test_explicit_weights_of_the_wrong_network_are_refused(tmp_path):
    torch.save(random_weights("anatomix-dev"), tmp_path / "dev.pth")
    with pytest.raises(WeightsError, match=r"dev\.pth does not fit extractor 'anatomix'"):
        build_extractor("anatomix", weights=tmp_path / "dev.pth")
    with pytest.raises(WeightsError, match=r'no file .*absent\.pth, which .* weights names.*plans\["nnunet_dg"\]'):
        build_extractor("anatomix", weights=tmp_path / "absent.pth")


def test_a_home_that_cannot_be_written_says_so(tmp_path, monkeypatch, file):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("NNUNET_DG_HOME", str(tmp_path / "occupied" / "below"))
    with pytest.raises(WeightsError, match="Set NNUNET_DG_HOME to a folder that can"):
        room.install(published(file, "http://127.0.0.1:9/"), file)


def test_download_keeps_every_byte(tmp_path, home):
    content = bytes(range(256)) * 9999
    path = tmp_path / "blob"
    path.write_bytes(content)
    with Server(content) as server:
        weights = replace(published(path, server.url), layout_problems=lambda _: "")
        assert hashlib.sha256(room.fetch(weights).read_bytes()).digest() == hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: {k: v * float("nan") if v.ndim > 1 else v for k, v in w.items()}, "not finite"),
        (lambda w: {k: -v if k.endswith("running_var") else v for k, v in w.items()}, "negative variance"),
        (lambda w: {k: v.bool() for k, v in w.items()}, "holds bool values"),
        (lambda w: {k: v.to(torch.complex64) for k, v in w.items()}, "holds complex64 values"),
        (lambda w: {k: v.to("meta") for k, v in w.items()}, "is a meta tensor"),
        (lambda w: {k: v * 1e30 if v.ndim > 1 else v for k, v in w.items()}, "holds a value of"),
        (lambda w: {k: v.to_sparse() if v.ndim > 1 else v for k, v in w.items()}, "is a sparse or nested tensor"),
    ],
)
def test_weights_that_are_no_weights_are_not_installed(change, problem, home, tmp_path, anatomix_weights):
    torch.save(change(anatomix_weights), tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=rf"bad\.pth does not hold trained weights: model\.\S+ .*{problem}"):
        room.install(room.PUBLISHED["anatomix"], tmp_path / "bad.pth", unpublished=True)
    assert not list(home.iterdir())


def test_a_failed_installation_leaves_the_file_that_was_there_in_use(file, home, tmp_path, monkeypatch):
    pinned = room.PUBLISHED["anatomix"]
    room.install(pinned, file, unpublished=True)
    torch.save(random_weights(seed=8), tmp_path / "other.pth")
    replace_file = Path.replace

    def refuse_weights(self, target):
        if target.suffix == ".pth":
            raise PermissionError(1, "Operation not permitted")
        return replace_file(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse_weights)
        with pytest.raises(WeightsError, match="could not be written"):
            room.install(pinned, tmp_path / "other.pth", unpublished=True)
    assert room.state(pinned).startswith("installed as unpublished")
    assert room.locate(pinned).read_bytes() == file.read_bytes()
    assert not list(home.glob(".*.partial"))
    room.install(pinned, tmp_path / "other.pth", unpublished=True)
    assert room.locate(pinned).read_bytes() == (tmp_path / "other.pth").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.parametrize("after", [1, 2])
def test_an_installation_that_is_killed_leaves_the_old_state_or_the_new_one(after, file, home, tmp_path):
    pinned = room.PUBLISHED["anatomix"]
    room.install(pinned, file, unpublished=True)
    torch.save(random_weights(seed=8), tmp_path / "other.pth")
    command = [sys.executable, SUPPORT / "killed_while_installing.py", tmp_path / "other.pth", str(after)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert room.locate(pinned).read_bytes() == (file if after == 1 else tmp_path / "other.pth").read_bytes()


def test_the_note_of_a_development_version_counts(file, home):
    pinned = room.PUBLISHED["anatomix"]
    room.install(pinned, file, unpublished=True)
    (note,) = home.glob("*.unpublished")
    note.rename(home / "anatomix.unpublished")
    assert room.state(pinned).startswith("installed as unpublished")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_others_can_read_what_is_installed_in_a_shared_folder(file, home):
    home.mkdir()
    home.chmod(0o775)
    before = os.umask(0o077)
    try:
        room.install(room.PUBLISHED["anatomix"], file, unpublished=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o664}


def test_what_a_killed_download_left_is_removed_and_a_running_one_is_not(file, home):
    home.mkdir()
    left, running = (home / f".anatomix.pth.{name}.partial" for name in ("0000", "1111"))
    for path in (left, running):
        path.write_bytes(b"part")
        os.utime(path, (time.time() - 60,) * 2)
    with running.open("rb") as held:
        assert room._lock(held)
        room.install(room.PUBLISHED["anatomix"], file, unpublished=True)
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
def test_a_download_without_an_end_ends(path, limit, reason, file, home, monkeypatch):
    for name, value in limit.items():
        monkeypatch.setattr(room, name, value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    server.ended, server.daemon_threads = threading.Event(), True
    server.handle_error = lambda *_: None  # the client has hung up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(WeightsError, match=reason):
            room.fetch(published(file, f"http://127.0.0.1:{server.server_port}/{path}"))
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("chosen", ["~nobody-of-this-name/x", "a\0b"])
def test_paths_that_are_none(chosen):
    with pytest.raises(WeightsError, match=r"cannot be resolved|not a path"):
        build_extractor("anatomix", weights=chosen)


def test_is_the_projects_weights_error():
    from nnunet_dg import errors

    assert WeightsError is errors.WeightsError
    assert issubclass(WeightsError, RuntimeError)
