"""The examples run unchanged."""

import json
import os
import re
import runpy
import shlex
import shutil
import sys
import sysconfig

import numpy as np
import pytest
import SimpleITK as sitk
from helpers import REPOSITORY, SUPPORT
from nnunet_host import DATASET, NOWHERE, UNVALIDATED, declare, one_case
from PIL import Image

EXAMPLES = REPOSITORY / "examples"
TRAINER = "Tiny_nnUNetTrainerDropGen_MIND"


def test_a_job_of_the_array_trains_its_fold_and_resumes_when_requeued(host):
    job = f"{EXAMPLES}/slurm/five_folds.sbatch 701 3d_fullres -tr {TRAINER} -p tinyPlans -device cpu"
    first = host.run(job, status=-9, SLURM_ARRAY_TASK_ID="4", TINY_STOP_AFTER="1", WAIT_FOR_SPLITS="0")
    assert "Starting a new training" in first
    assert "Epoch 1\n" in host.run(job, SLURM_ARRAY_TASK_ID="4")
    assert list((host.results(TRAINER, "4") / "validation").glob("*.npz"))


@pytest.fixture
def printing(host, tmp_path):
    """A PATH with an nnUNetv2_train that only prints its arguments."""
    command = tmp_path / "nnUNetv2_train"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    return f"{tmp_path}:{host.environment['PATH']}"


@pytest.mark.parametrize(("dataset", "waits"), [("501", False), ("Dataset501_X", False), ("5", True), ("502", True)])
def test_other_folds_wait_for_the_splits_of_their_dataset(host, printing, tmp_path, dataset, waits):
    (tmp_path / "preprocessed" / "Dataset501_X").mkdir(parents=True)
    (tmp_path / "preprocessed" / "Dataset501_X" / "splits_final.json").touch()
    printed = host.run(
        f"{EXAMPLES}/slurm/five_folds.sbatch {dataset} 3d_fullres",
        SLURM_ARRAY_TASK_ID="1", WAIT_FOR_SPLITS="0", PATH=printing, nnUNet_preprocessed=f"{tmp_path}/preprocessed",
    )  # fmt: skip
    assert printed.splitlines()[-1] == f"{dataset} 3d_fullres 1 --npz --c"
    assert ("Fold 0 has not written splits" in printed) == waits


def test_the_number_of_gpus_is_passed_to_nnunet(host, printing):
    printed = host.run(
        f"{EXAMPLES}/slurm/several_gpus.sbatch 501 3d_fullres 0 -tr nnUNetTrainerDropGen",
        SLURM_GPUS_ON_NODE="2", PATH=printing,
    )  # fmt: skip
    assert printed.strip() == "501 3d_fullres 0 -num_gpus 2 --npz --c -tr nnUNetTrainerDropGen"
    assert "--c" not in host.run(
        f"{EXAMPLES}/slurm/several_gpus.sbatch 501 3d_fullres 0 --val",
        SLURM_GPUS_ON_NODE="2", PATH=printing,
    )  # fmt: skip


@pytest.mark.parametrize("script", ["five_folds.sbatch 501 3d_fullres", "several_gpus.sbatch 501 3d_fullres 0"])
def test_a_script_that_slurm_did_not_start_is_an_error(host, script):
    assert "submit this with sbatch" in host.run(f"{EXAMPLES}/slurm/{script}", status=1)


def test_a_submission_predicts_with_five_folds_offline(host, tmp_path):
    trainer = "Tiny_nnUNetTrainerDropGen"
    if not (host.results(trainer) / "validation" / "summary.json").exists():
        host.train(trainer)  # with a validation, which the zip contains too
    results = host.results(trainer).parent
    five = tmp_path / "results" / DATASET / results.name
    for fold in range(5):
        shutil.copytree(results / "fold_0", five / f"fold_{fold}")
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copy(results / name, five)
    zipped = tmp_path / "model.zip"
    host.run(
        f"nnUNetv2_export_model_to_zip -d 701 -o {zipped} -c 3d_fullres -tr {trainer} -p tinyPlans",
        nnUNet_results=str(tmp_path / "results"),
    )
    images = one_case(host, tmp_path / "images")
    printed = host.run(
        f"{EXAMPLES}/challenge/predict.sh {zipped} {images} {tmp_path / 'out'} -device cpu -npp 1 -nps 1 --disable_tta",
        NNUNET_DG_HOME=str(tmp_path / "empty"), https_proxy=NOWHERE, TMPDIR=str(tmp_path),
        nnUNet_raw="", nnUNet_preprocessed="", nnUNet_results="",
    )  # fmt: skip
    assert "predicting case_0" in printed.lower()
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out" / "case_0.nii.gz"))
    assert set(np.unique(segmentation)) <= {0, 1, 2}
    assert not (tmp_path / "empty").exists()
    assert not list(tmp_path.glob("tmp.*"))


def test_embeddings_are_computed_and_drawn(host, tmp_path):
    trainers = ("Tiny_nnUNetTrainer", "Tiny_nnUNetTrainerDropGen_MIND")
    for trainer in trainers:
        if not (host.results(trainer) / "checkpoint_final.pth").exists():
            host.train(trainer, **UNVALIDATED)
    folders = " ".join(str(host.results(trainer).parent) for trainer in trainers)
    example = f"{shlex.quote(sys.executable)} {EXAMPLES}/sgcg/embeddings.py"
    printed = host.run(f"{example} {folders} -o {tmp_path / 'picture.png'} --voxels 20")
    ratios = re.findall(r"scatter (\d+\.\d+), (\d+) voxels", printed)
    assert len(ratios) == 2
    assert [int(n) for _, n in ratios] == [60, 60]  # one validation case, three classes
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 1.5 * picture.height


def test_the_scatter_ratio_computed_by_hand():
    example = runpy.run_path(str(EXAMPLES / "sgcg" / "embeddings.py"))
    features = np.array([[0.0, 1], [0, -1], [4, 1], [4, -1]])  # means (0, 0) and (4, 0), each voxel at distance 1
    assert example["scatter_ratio"](features, np.array([0, 0, 1, 1])) == 4
    assert example["scatter_ratio"](features, np.array([0, 1, 0, 1])) == pytest.approx(1 / 4)


def test_a_custom_trainer_is_installed_found_and_trained(host, tmp_path):
    """The doctor lists it by its name, and nnU-Net trains it with its own settings."""
    source = shutil.copytree(EXAMPLES / "own_trainer", tmp_path / "own_trainer")  # building leaves files in it
    pip = f"{shlex.quote(sys.executable)} -m pip install --quiet --no-deps --no-build-isolation --no-index"
    host.run(f"{pip} --target {tmp_path / 'installed'} {source}")
    module = (SUPPORT / "tiny_own_trainer.py").read_text()
    trainer = "Tiny_nnUNetTrainerDropGenMild"
    declare(tmp_path / "tiny", "tiny-own", module, f"[nnunetv2.trainers]\n{trainer} = tiny_own:{trainer}\n")
    packages = [tmp_path / "installed", tmp_path / "tiny", host.environment["PYTHONPATH"]]
    installed = {"PYTHONPATH": os.pathsep.join(map(str, packages)), "COLUMNS": "200"}
    for name in ("nnUNetTrainerDropGenMild", "nnUNetTrainerDropGenMild_5epochs"):
        rows = [line for line in host.run("nnunet-dg doctor", **installed).splitlines() if f" {name} " in line]
        assert len(rows) == 1
        assert rows[0].count("own") == 2  # the package, and the module that nnU-Net found
    host.train(trainer, **installed, **UNVALIDATED)
    plans = json.loads((host.results(trainer).parent / "plans.json").read_text())
    assert (plans["nnunet_dg"]["dropgen"]["p"], plans["nnunet_dg"]["dropgen"]["extractor"]) == (0.35, "mind")
    host.predict(trainer, one_case(host, tmp_path / "in"), tmp_path / "out", **installed)
    assert (tmp_path / "out" / "case_0.nii.gz").is_file()


@pytest.mark.demo
def test_the_tutorial_runs(tmp_path, monkeypatch):
    """Every cell, in a few minutes on two cores; a command that fails is an error of its cell."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # it is published without outputs
    shutil.copytree(EXAMPLES / "own_trainer", tmp_path / "own_trainer")
    scripts = sysconfig.get_path("scripts")
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    in_folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=in_folder).execute()
    report = (tmp_path / "tutorial" / "report" / "report.md").read_text()
    for trainer in ("nnUNetTrainer", "DropGen"):
        assert re.search(rf"^\| {trainer} +\|( +\d+\.\d ± \d+\.\d \(4\) +\|){{2}}", report, re.M), report
    with Image.open(tmp_path / "tutorial" / "stress" / "stress.png") as picture:
        assert picture.width > 400
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/png" in output["data"] for output in shown) == 3
