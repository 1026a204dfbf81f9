"""nnU-Net's real commands in processes of their own, with small data in separate folders and very short trainings."""

import json
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import SUPPORT
from warm_process import WarmProcesses, runs_python

SITE = SUPPORT / "site"  # each process imports sitecustomize from here when it starts
OURS = [e.name for e in entry_points(group="nnunetv2.trainers") if e.dist.name == "nnunet-dg"]
TINY_NAMES = [f"Tiny_{name}" for name in ("nnUNetTrainer", *OURS)]
UNVALIDATED = {"TINY_UNVALIDATED": "1"}  # skips a validation that a test does not need; it would start two processes
PREDICTION = "-device cpu -npp 0 -nps 0 --disable_tta"  # in a single process, if nnU-Net supports it
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses every connection: a compute node without internet


def declare(folder: Path, name: str, module: str, entry_points: str) -> Path:
    """Write an installed package to a folder for PYTHONPATH: a module, and metadata that declares entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / f"{name.replace('-', '_')}.py").write_text(module)
    return folder


@dataclass
class Host:
    """nnU-Net's three folders below ``folder``, and its commands."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    warm: WarmProcesses = field(default_factory=WarmProcesses)

    def __post_init__(self) -> None:
        folders = {name: str(self.folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet", "NNUNET_DG", "TORCH_DEVICE"))}
        own = {"NNUNET_DG_HOME": str(self.folder / "weights"), "nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "1"}
        own["PYTHONPATH"] = str(SITE)
        own["PYTHONUNBUFFERED"] = "1"  # so that the output of a killed process is complete
        own["OMP_NUM_THREADS"] = "1"  # tiny networks are not faster with more, and the order of sums is fixed
        offline = {"https_proxy": NOWHERE, "http_proxy": NOWHERE, "no_proxy": ""}
        scripts = sysconfig.get_path("scripts")
        self.environment = kept | folders | own | offline | {"PATH": f"{scripts}{os.pathsep}{kept['PATH']}"}

    def install(self, folder: Path) -> None:
        """Make the packages in a folder available to all later commands."""
        self.environment["PYTHONPATH"] = f"{folder}{os.pathsep}{self.environment['PYTHONPATH']}"

    def run(
        self, command: str, status: int | None = 0, warm: bool = True, timeout: float = 300, **environment: str
    ) -> str:  # fmt: skip
        """Run a command in a process of its own and return its output. Its exit status must be ``status``.

        Python programs start with nnU-Net and this package imported, see `warm_process`, unless ``warm`` is false.
        """
        words, environment = shlex.split(command), self.environment | environment
        if warm and runs_python(words):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "output")
                returncode = self.warm.run(words, environment, self.folder, file, timeout)
                output = file.read_text()
        else:
            result = subprocess.run(
                words, env=environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=timeout, check=False, start_new_session=True,
            )  # fmt: skip
            returncode, output = result.returncode, result.stdout
        assert status is None or returncode == status, f"{command}\n{output[-6000:]}"
        return output

    def python(self, code: str, status: int = 0, **environment: str) -> str:
        """Run Python code in a process of its own."""
        return self.run(f"{shlex.quote(sys.executable)} -W ignore -c {shlex.quote(code)}", status, **environment)

    def script(self, name: str, *arguments: object, status: int = 0, warm: bool = True, **environment: str) -> str:
        """Run one of the programs in tests/support."""
        command = [sys.executable, "-W", "ignore", SUPPORT / name, *arguments]
        return self.run(shlex.join(map(str, command)), status, warm, **environment)

    def train(
        self, trainer: str, options: str = "", fold: str = "0", configuration: str = "3d_fullres", dataset: int = 701,
        plans: str = "tinyPlans", status: int | None = 0, **environment: str,
    ) -> str:  # fmt: skip
        """Run nnUNetv2_train on the CPU; batches are made in its process unless nnUNet_n_proc_DA says otherwise."""
        command = f"nnUNetv2_train {dataset} {configuration} {fold} -p {plans} -tr {trainer} -device cpu {options}"
        return self.run(command, status, **({"nnUNet_n_proc_DA": "0"} | environment))

    def predict(
        self, trainer: str, images: Path, out: Path, options: str = "", fold: str = "0",
        configuration: str = "3d_fullres", dataset: int = 701, plans: str = "tinyPlans", **environment: str,
    ) -> None:  # fmt: skip
        """Run nnUNetv2_predict on the CPU, without mirroring."""
        self.run(
            f"nnUNetv2_predict -i {images} -o {out} -d {dataset} -c {configuration} -f {fold} -p {plans} -tr {trainer} "
            f"{PREDICTION} {options}",
            **environment,
        )

    def results(
        self, trainer: str, fold: str = "0", configuration: str = "3d_fullres", dataset: str = "",
        plans: str = "tinyPlans",
    ) -> Path:  # fmt: skip
        """The results folder of a fold trained on this host."""
        base = self.folder / "nnUNet_results" / (dataset or DATASET) / f"{trainer}__{plans}__{configuration}"
        return base / f"fold_{fold}"


DATASET = "Dataset701_Tiny"


def write_case(folder: Path, name: str, rng: np.random.Generator, shape=(20, 24, 20), channels: int = 1) -> None:
    """Write image and truth of a bright box (label 1) with a brighter core (label 2) on a noisy background."""
    segmentation = np.zeros(shape, np.uint8)
    corner = rng.integers(3, 7, 3)
    box = tuple(slice(c, c + 9) for c in corner)
    core = tuple(slice(c + 2, c + 6) for c in corner)
    segmentation[box], segmentation[core] = 1, 2
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for channel in range(channels):
        image = (100 * segmentation + 20 * rng.standard_normal(shape)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(segmentation), folder / "labelsTr" / f"{name}.nii.gz")


def shrink_plans(preprocessed: Path, features: int = 4, plans: str = "nnUNetPlans", name: str = "tinyPlans") -> None:
    """Write a copy of nnU-Net's plans as ``name``: few features, batches of two, a lower resolution and a cascade."""
    content = json.loads((preprocessed / f"{plans}.json").read_text())
    configurations = content["configurations"]
    for configuration in configurations.values():
        if "architecture" in configuration:
            network = configuration["architecture"]["arch_kwargs"]
            network["features_per_stage"] = [features * 2**i for i in range(network["n_stages"])]
            configuration["batch_size"] = 2
    lowres = {"inherits_from": "3d_fullres", "spacing": [2.0, 2.0, 2.0], "next_stage": "3d_cascade_fullres"}
    configurations["3d_lowres"] = lowres | {"data_identifier": f"{name}_3d_lowres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    (preprocessed / f"{name}.json").write_text(json.dumps(content | {"plans_name": name}))


def one_case(host: Host, folder: Path) -> Path:
    """A new folder with only the images of case_0."""
    folder.mkdir(parents=True)
    image = "case_0_0000.nii.gz"
    (folder / image).symlink_to(host.folder / "nnUNet_raw" / DATASET / "imagesTr" / image)
    return folder


@pytest.fixture(scope="session")
def host(tmp_path_factory, anatomix_weights) -> Iterator[Host]:
    """A planned and preprocessed dataset of five cases, in 2-D and 3-D, and random anatomix weights in the cache."""
    host = Host(tmp_path_factory.mktemp("nnunet"))
    names = "\n".join(f"{name} = tiny_trainers:{name}" for name in (*TINY_NAMES, "nnUNetTrainerOtherForward"))
    module = (SUPPORT / "tiny_trainers.py").read_text()
    declare(host.folder / "packages", "tiny-trainers", module, f"[nnunetv2.trainers]\n{names}\n")
    host.install(host.folder / "packages")
    raw = host.folder / "nnUNet_raw" / DATASET
    rng = np.random.default_rng(0)
    for i in range(5):
        write_case(raw, f"case_{i}", rng)
    labels = {"background": 0, "box": 1, "core": 2}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(dataset))
    host.run("nnUNetv2_plan_and_preprocess -d 701 -c 2d 3d_fullres -np 1 -npfp 1")
    shrink_plans(host.folder / "nnUNet_preprocessed" / DATASET)
    torch.save(anatomix_weights, host.folder / "random.pth")
    host.run(f"nnunet-dg weights install anatomix {host.folder / 'random.pth'} --unpublished")
    yield host
    host.warm.close()
