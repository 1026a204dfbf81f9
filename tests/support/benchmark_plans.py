"""A plan of a benchmark, and nnU-Net's folders with a raw dataset of three domains."""

import json

import pytest

DATASET = "Dataset701_Tiny"
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
    monkeypatch.setattr("nnunet_dg.datasets.split_dataset.maybe_convert_to_dataset_name", lambda _: DATASET)
    return tmp_path


def written(folder, content):
    path = folder / "plan.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))  # JSON is YAML
    return path
