"""Measures `nnunet-dg report` on the validations of many trainers: CPU seconds, and the size of the HTML page.

    python benchmarks/report_cost.py           # 10 trainers x 5 folds x 500 cases, 3 labels, all four metrics
    python benchmarks/report_cost.py --cases 50
    python benchmarks/report_cost.py --quick

Every case has a file of a truth, and of a prediction of each trainer, whose hashes the report checks. They are small;
larger files cost their reading in addition. Cases are from five domains, of which each fold holds one out.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aside  # noqa: F401, before nnU-Net

# isort: split
import numpy as np
from measures import Measure, show

from nnunet_dg.reporting.results import Source, report

DATASET = "Dataset999_Benchmark"
LABELS = ("organ", "lesion", "vessel")
DOMAINS = 5


def write_dataset(cases: int) -> list[list[str]]:
    """Splits, domains and truths of the preprocessed dataset; returns the validation cases of each fold."""
    preprocessed = Path(os.environ["nnUNet_preprocessed"], DATASET)  # noqa: SIM112
    truths = preprocessed / "gt_segmentations"
    truths.mkdir(parents=True, exist_ok=True)
    folds = [[f"case_{fold}_{number:04d}" for number in range(cases)] for fold in range(DOMAINS)]
    for case in (case for fold in folds for case in fold):
        (truths / f"{case}.nii.gz").write_text(case)
    everything = [case for fold in folds for case in fold]
    splits = [{"train": [case for case in everything if case not in set(fold)], "val": fold} for fold in folds]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    domains = {case: f"site {number}" for number, fold in enumerate(folds) for case in fold}
    (preprocessed / "domains.json").write_text(json.dumps(domains))
    return folds


def write_results(results: Path, folds: list[list[str]], rng: np.random.Generator) -> None:
    """The results folder of one trainer, with an evaluation of each fold."""
    names = {"background": 0} | {label: i + 1 for i, label in enumerate(LABELS)}
    dataset = {"channel_names": {"0": "MRI"}, "labels": names, "numTraining": 1, "file_ending": ".nii.gz"}
    results.mkdir(parents=True)
    (results / "dataset.json").write_text(json.dumps(dataset))
    plans = {"dataset_name": DATASET, "plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {}}}
    (results / "plans.json").write_text(json.dumps(plans))
    truths = Path(os.environ["nnUNet_preprocessed"], DATASET, "gt_segmentations")  # noqa: SIM112
    for number, cases in enumerate(folds):
        folder = results / f"fold_{number}" / "validation"
        folder.mkdir(parents=True)
        (folder / "evaluation.json").write_text(json.dumps(evaluation(folder, truths, cases, rng)))


def evaluation(folder: Path, truths: Path, cases: list[str], rng: np.random.Generator) -> dict[str, object]:
    """The content of ``evaluation.json``, with the files of the predictions."""
    hashes: dict[str, dict[str, str]] = {"sha256": {}, "sha256_of_truths": {}}
    rows = []
    for case in cases:
        prediction, truth = folder / f"{case}.nii.gz", truths / f"{case}.nii.gz"
        prediction.write_text(f"{folder} {case}")
        hashes["sha256"][str(prediction)] = hashlib.sha256(prediction.read_bytes()).hexdigest()
        hashes["sha256_of_truths"][str(truth)] = hashlib.sha256(truth.read_bytes()).hexdigest()
        files = {"prediction_file": str(prediction), "reference_file": str(truth)}
        for label in LABELS:
            dice, distance = rng.beta(8, 2), rng.gamma(2, 2)
            scores = {"dice": dice, "nsd": dice**0.5, "hd95_mm": 3 * distance, "assd_mm": distance}
            voxels = {"truth_voxels": 1000.0, "predicted_voxels": 1000.0}
            rows.append({"case": case, "label": label} | scores | voxels | files)
    settings = {"missing": "error", "tolerance_mm": 1.0, "ignore_affine": False}
    return {"settings": settings, "cases": rows, **hashes}


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measures(quick: bool = False, cases: int = 500) -> list[Measure]:
    """The figures of this file."""
    trainers, cases = (2, 4) if quick else (10, cases)
    rng = np.random.default_rng(0)
    folds = write_dataset(cases)
    with tempfile.TemporaryDirectory() as folder:
        names = ["nnUNetTrainer", *(f"nnUNetTrainer{number}" for number in range(1, trainers))]
        results = [Path(folder, f"{name}__nnUNetPlans__3d_fullres") for name in names]
        for path in results:
            write_results(path, folds, rng)
        output = Path(folder, "report")
        duration = seconds(lambda: report([Source(path, None) for path in results], output))
        size = (output / "report.html").stat().st_size / 2**20
    name = f"report of {trainers} trainers x {DOMAINS} folds x {cases} cases"
    return [Measure(f"{name}, CPU", duration, "s", 60), Measure(f"{name}, report.html", size, "MiB", 20)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test with small sizes")
    parser.add_argument("--cases", type=int, default=500, help="validation cases of each fold (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to which the figures are written as well")
    arguments = parser.parse_args()
    show(measures(arguments.quick, arguments.cases), arguments)


if __name__ == "__main__":
    main()
