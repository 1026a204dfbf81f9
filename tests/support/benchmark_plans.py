"""Plans of benchmarks, nnU-Net's folders with a raw dataset of three domains, and the command on a tiny dataset."""

import json
from importlib.util import find_spec

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

DATASET = "Dataset701_Tiny"
NEEDS_SNAKEMAKE = pytest.mark.skipif(find_spec("snakemake") is None, reason="the extra benchmark is not installed")
PLAN = {"datasets": [701], "trainers": {"nnUNetTrainer": None}, "seeds": [0, 1], "epochs": 5}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's folders with a raw dataset of three domains."""
    raw = tmp_path / "raw" / DATASET
    raw.mkdir(parents=True)
    (raw / "domains.json").write_text(json.dumps({f"case_{i}": "ABC"[i % 3] for i in range(6)}))
    for module in ("nnunet_dg.benchmark.trainings", "nnunet_dg.datasets.split_dataset"):
        for name in ("raw", "preprocessed", "results"):
            monkeypatch.setattr(f"{module}.nnUNet_{name}", str(tmp_path / name), raising=False)
    monkeypatch.setattr("nnunet_dg.datasets.split_dataset.maybe_convert_to_dataset_name", _converted)
    return tmp_path


def _converted(dataset):
    """As nnU-Net's function, for a single dataset."""
    if isinstance(dataset, int) and dataset != 701:
        raise RuntimeError(f"Could not find a dataset with the ID {dataset}. Your folders:\nnnUNet_raw=/data/raw\n")
    return DATASET if isinstance(dataset, int) else dataset


def written(folder, content):
    path = folder / "plan.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))  # JSON is YAML
    return path


RUN_ROWS = {
    "nnUNetTrainer": None,
    "neutral": {"trainer": "nnUNetTrainerMixStyle", "settings": {"mixstyle": {"p": 0.0}}},
}
RUN_PLAN = {
    "datasets": [{"dataset": 701, "protocol": "existing", "folds": [0]}],
    "trainers": RUN_ROWS, "plans": ["tinyPlans"], "epochs": 1, "steps": 2, "device": "cpu",
}  # fmt: skip


def results(host, row, trainer, seed=0, length="1epochs_2steps"):
    return host.results(trainer, plans=f"tinyPlans_{row}_{length}_seed{seed}")


@pytest.fixture
def benchmark(host, tmp_path):
    """A function that runs the command with a plan, and returns what it prints."""
    splits = host.folder / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    if not splits.is_file():  # the one that nnU-Net makes in its first training
        splits.write_text(json.dumps(generate_crossval_split([f"case_{i}" for i in range(5)], seed=12345)))

    def run(options="", status=0, environment=None, **changes):
        plan = tmp_path / "plan.yaml"
        plan.write_text(json.dumps(RUN_PLAN | changes))
        command, variables = f"nnunet-dg benchmark {plan} {options}", {"nnUNet_n_proc_DA": "0"} | (environment or {})
        return host.run(command, status, timeout=1800, **variables)

    return run
