"""An installation without extras, such as a container for DropGen: training, prediction and our own commands."""

import json
import shutil

import pytest
from nnunet_host import DATASET, UNVALIDATED, one_case

TRAINER = "Tiny_nnUNetTrainerDropGen"


@pytest.fixture(scope="module")
def bare(host, tmp_path_factory):
    """Environment for commands without the packages of the extras, with separate results and data."""
    folder = tmp_path_factory.mktemp("bare")
    preprocessed = folder / "preprocessed" / DATASET
    preprocessed.mkdir(parents=True)
    for path in (host.folder / "nnUNet_preprocessed" / DATASET).iterdir():
        (preprocessed / path.name).symlink_to(path)
    return {
        "WITHOUT_EXTRAS": "1",
        "nnUNet_results": str(folder / "results"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        **UNVALIDATED,
    }


def test_the_packages_are_not_found(host, bare):
    assert "No module named 'monai'" in host.python("import monai", status=1, **bare)


def test_dropgen_trains_and_predicts_and_a_report_names_the_extra_it_needs(host, bare, tmp_path):
    host.train(TRAINER, **bare)
    host.predict(TRAINER, one_case(host, tmp_path / "in"), tmp_path / "out", **bare)
    assert (tmp_path / "out" / "case_0.nii.gz").is_file()
    results = f"{bare['nnUNet_results']}/{DATASET}/{TRAINER}__tinyPlans__3d_fullres"
    printed = host.run(f"nnunet-dg report {results} -o {tmp_path / 'report'}", status=1, **bare)
    assert 'pip install "nnunet-dg[report]"' in printed
    assert "Traceback" not in printed


def test_doctor_weights_and_splits_work(host, bare, tmp_path):
    printed = host.run("nnunet-dg doctor -d 701 -p tinyPlans", COLUMNS="200", **bare)
    assert "FAILED" not in printed
    assert "installed as unpublished" in host.run("nnunet-dg weights", COLUMNS="200", **bare)
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({f"case_{i}": f"subject_{i}" for i in range(5)}))
    preprocessed = tmp_path / "preprocessed"
    shutil.copytree(
        host.folder / "nnUNet_preprocessed" / DATASET, preprocessed / DATASET,
        ignore=shutil.ignore_patterns("splits_final.json", "*.b2nd"),
    )  # fmt: skip
    environment = bare | {"nnUNet_preprocessed": str(preprocessed)}
    host.run(f"nnunet-dg splits grouped -d 701 --groups {groups}", **environment)
    assert len(json.loads((preprocessed / DATASET / "splits_final.json").read_text())) == 5
