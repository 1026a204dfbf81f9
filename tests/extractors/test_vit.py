"""ViTs of timm: fetched once from a hub (here a server on localhost), cached and verified, or read from a file."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from nnunet_host import NOWHERE
from safetensors.torch import save_file

from nnunet_dg.cli import main
from nnunet_dg.extractors import vit
from nnunet_dg.extractors.weights import WeightsError

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SAM = "samvit_base_patch16"
FILE = f"/timm/{NAME}/resolve/main/model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_file(timm.create_model(NAME).state_dict(), path)
    return path


@pytest.fixture
def hub(published):
    """The address of a hub with one file, and the list of requests to it."""
    content, requests = published.read_bytes(), []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self, body=b""):
            requests.append((self.command, self.path))
            found = self.path == FILE
            self.send_response(200 if found or self.command == "GET" else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')  # as for files in large-file storage
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.do_HEAD(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()


def fetch(home, name=NAME, **environment):
    """Run `nnunet-dg weights fetch` as a user does; returns exit status and output."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_dg.cli", "weights", "fetch", name],
        env=kept | {"NNUNET_DG_HOME": str(home), "COLUMNS": "300"} | environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_weights_are_fetched_once_and_then_loaded_without_network(hub, published, tmp_path, monkeypatch, capsys):
    address, requests = hub
    status, printed = fetch(tmp_path, HF_ENDPOINT=address)
    assert status == 0, printed
    assert [path for command, path in requests if command == "GET" and "/timm/" in path] == [FILE]
    assert "Fetching" in printed
    for variable, value in {"NNUNET_DG_HOME": str(tmp_path), "https_proxy": NOWHERE, "http_proxy": NOWHERE}.items():
        monkeypatch.setenv(variable, value)
    assert main(["weights", "fetch", NAME]) == 0
    assert "Fetching" not in capsys.readouterr().out
    assert [name for name, _ in vit.on_this_machine()] == [NAME]
    model = vit.build(NAME)
    path = vit.load(model, NAME)
    assert path.is_relative_to(tmp_path)
    expected = timm.create_model(NAME)
    expected.load_state_dict(timm.models.load_state_dict(str(published), weights_only=True))
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())

    content = path.read_bytes()
    path.unlink()  # a link in the hub's cache
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(
        WeightsError, match=f"is not the published file.* Delete it, then: nnunet-dg weights fetch {NAME}"
    ):
        vit.load(model, NAME)
    path.write_bytes(content)
    vit.load(model, NAME)
    next((tmp_path / "hub").glob("*.published")).unlink()
    with pytest.raises(WeightsError, match=r"the hub's hash in .* is missing or damaged"):
        vit.load(model, NAME)


def test_without_network_the_message_names_the_folder_and_the_command(tmp_path):
    status, printed = fetch(tmp_path, https_proxy=NOWHERE, http_proxy=NOWHERE)
    assert status == 1
    assert f"The published weights of '{NAME}' could not be fetched" in printed
    assert str(tmp_path / "hub") in printed
    assert f"nnunet-dg weights fetch {NAME}" in printed
    assert "Traceback" not in printed


def test_unpublished_names_are_refused_with_the_published_ones():
    with pytest.raises(WeightsError, match=rf"no weights for '{SAM}.mine'. It publishes .*{SAM}.sa1b"):
        vit.locate(f"{SAM}.mine")


def test_a_sam_checkpoint_is_read_in_the_layout_of_its_authors(tmp_path):
    torch.manual_seed(2)
    expected = timm.create_model(SAM, num_classes=0).state_dict()
    layout = {f"image_encoder.{k.replace('mlp.fc', 'mlp.lin')}": v for k, v in expected.items()}
    torch.save(layout | {"mask_decoder.iou_token.weight": torch.zeros(1, 256)}, tmp_path / "medsam.pth")
    model = vit.build(SAM)
    assert vit.load(model, SAM, tmp_path / "medsam.pth") == tmp_path / "medsam.pth"
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state | {"mask_token": torch.zeros(1, 1, 192)}, "args": Namespace(lr=1e-3), "epoch": 1},
        lambda state: {
            "teacher": {f"backbone.{k}": v for k, v in state.items()} | {"head.mlp.0.weight": torch.ones(2)}
        },
        lambda state: {"state_dict": {f"module.backbone.{k}": v for k, v in state.items()}},
        lambda state: {"model_state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}},
        lambda state: state,
    ],
    ids=["MAE", "DINO", "DDP", "compiled", "plain"],
)
def test_checkpoints_of_common_trainings_are_read_without_running_code(tmp_path, monkeypatch, wrap):
    torch.manual_seed(3)
    expected = timm.create_model(NAME, num_classes=0).state_dict()
    torch.save(wrap(dict(expected)), tmp_path / "file.pth")
    read, calls = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **options: (calls.append(options), read(*a, **options))[1])
    model = vit.build(NAME)
    vit.load(model, NAME, tmp_path / "file.pth")
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert [options["weights_only"] for options in calls] == [True]


class Objects:
    """A Python object that a program saves together with its weights."""


def test_python_objects_in_a_file_are_refused_with_a_short_solution(tmp_path):
    torch.save({"model": {}, "args": Objects()}, tmp_path / "file.pth")
    with pytest.raises(WeightsError) as refused:
        vit.load(vit.build(NAME), NAME, tmp_path / "file.pth")
    text = str(refused.value)
    assert "Objects" in text
    assert "weights_only=False" in text
    assert "state_dict" in text
    assert len(text) < 700


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * float("nan"), "norm.bias has values that are not finite"),
        (lambda w: w + 1e30, r"norm.bias has a value of 1\.0e\+30; weights must be at most 1e\+06"),
        (lambda w: w.to(torch.complex64), "norm.bias has complex64 values"),
        (lambda w: w.to(torch.int64), "norm.bias has int64 values"),
        (lambda w: w.to(torch.bool), "norm.bias has bool values"),
        (lambda w: w.to("meta"), "norm.bias is a meta tensor"),
        (lambda w: w.to_sparse(), "norm.bias is a sparse or nested tensor"),
    ],
)
def test_implausible_weights_are_refused(tmp_path, change, message):
    state = timm.create_model(NAME, num_classes=0).state_dict()
    state["norm.bias"] = change(state["norm.bias"])
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=message):
        vit.load(vit.build(NAME), NAME, tmp_path / "file.pth")


class Code:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_file_that_the_safe_reader_fails_on_is_not_read_by_another(tmp_path, monkeypatch):
    """After a TypeError, which this file raises, timm's own reader would try again without weights_only."""
    code = b"\x80\x02ccollections\nOrderedDict\n)RNb0cbuiltins\nprint\nX\x03\x00\x00\x00ran\x85R."
    torch.save({}, tmp_path / "empty.pth")
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(tmp_path / "empty.pth") as empty, zipfile.ZipFile(path, "w") as crafted:
        for name in empty.namelist():
            crafted.writestr(name, code if name.endswith("data.pkl") else empty.read(name))
    with pytest.raises(TypeError):
        torch.load(path, weights_only=True)
    read, calls = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **options: (calls.append(options), read(*a, **options))[1])
    with pytest.raises(WeightsError, match="cannot be read as weights of teacher"):
        vit.load(vit.build(NAME), NAME, path)
    assert [options["weights_only"] for options in calls] == [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no file .*weights of teacher"),
        ({"blocks.0.norm1.weight": torch.ones(192)}, "does not match teacher .*tensors are missing"),
        ({"patch_embed.proj.weight": torch.ones(2, 2)}, "does not contain weights of teacher"),
        ([1, 2], "it contains a list instead of names and tensors"),
        ({"model": 3}, "does not match teacher .*tensors are missing"),
        (Code(), "cannot be read as weights of teacher"),
        (b"<html>", "cannot be read as weights of teacher"),
        ("nan", "norm.bias has values that are not finite"),
    ],
)
def test_missing_foreign_and_dangerous_files_are_refused_by_name(tmp_path, capsys, content, message):
    path = tmp_path / "file.pth"
    if content == "nan":
        content = timm.create_model(NAME, num_classes=0).state_dict()
        content["norm.bias"][0] = float("nan")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        vit.load(vit.build(NAME), NAME, path)
    assert "ran" not in capsys.readouterr().out
