"""Measures the cost of `nnunet-dg evaluate`, with surface metrics, relative to nnU-Net's own evaluator, Dice only.

    python benchmarks/evaluate_cost.py           # 20 cases of 128^3 with 3 labels, 4 with 118
    python benchmarks/evaluate_cost.py --cases 200
    python benchmarks/evaluate_cost.py --quick

Both evaluate the same files in this process, with one thread, in CPU seconds. Cases are independent of each other, so
the ratio for 200 cases is that for fewer. Memory is what `evaluate` adds to the largest resident set of this process.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import aside  # noqa: F401, before nnU-Net

# isort: split
import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from measures import Measure, show
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from step_cost import largest_resident_set

from nnunet_dg.evaluation.evaluate import evaluate


def segmentations(labels: int, size: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A truth and a prediction that differ at the borders of labels: compact structures in a large background."""
    count = round(labels ** (1 / 3) + 0.499)
    cells = np.arange(1, count**3 + 1)
    cells = np.where(cells <= labels, cells, 0).reshape([count] * 3)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 0.999, size)] * 3, indexing="ij"))

    def moved(strength: float) -> NDArray[np.float64]:
        coarse = [gaussian_filter(rng.standard_normal([16] * 3), 2, mode="wrap") for _ in range(3)]
        return strength * np.stack([zoom(field / np.abs(field).max(), size / 16, order=1) for field in coarse])

    anatomy = grid + moved(0.05)
    result = []
    for place in (anatomy, anatomy + moved(0.01)):
        cell = np.clip((place * count).astype(int), 0, count - 1)
        inside = ((place * count - cell - 0.5) ** 2).sum(0) < 0.4**2  # a sphere in each cell
        result.append((cells[tuple(cell)] * inside).astype(np.uint8))
    return result[0], result[1]


def write_cases(folder: Path, labels: int, cases: int, size: int) -> None:
    """Truths, predictions, and a dataset.json next to the predictions."""
    rng = np.random.default_rng(0)
    for number in range(cases):
        for kind, array in zip(("truths", "predictions"), segmentations(labels, size, rng), strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((0.8, 0.8, 1.2))
            sitk.WriteImage(image, str(folder / kind / f"case_{number:03d}.nii.gz"), useCompression=True)
    names = {"background": 0} | {f"label {i}": i for i in range(1, labels + 1)}
    dataset = {"channel_names": {"0": "MRI"}, "labels": names, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "predictions" / "dataset.json").write_text(json.dumps(dataset))


def by_nnunet(folder: Path, labels: int) -> float:
    """CPU seconds of nnU-Net's evaluator, without its processes."""
    start = time.process_time()
    for truth in sorted((folder / "truths").iterdir()):
        prediction = folder / "predictions" / truth.name
        compute_metrics(str(truth), str(prediction), SimpleITKIO(), list(range(1, labels + 1)))
    return time.process_time() - start


def by_us(folder: Path) -> float:
    """CPU seconds of `evaluate` in this process, with everything that it reads, checks and writes."""
    start = time.process_time()
    evaluate(folder / "truths", folder / "predictions", processes=1)
    return time.process_time() - start


def ratio(labels: int, cases: int, size: int) -> tuple[float, float, float]:
    """CPU seconds of a case by `evaluate`, its ratio to nnU-Net's, and memory in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder, "first"), labels, 1, 16)
        by_nnunet(Path(folder, "first"), labels), by_us(Path(folder, "first"))  # imports
        write_cases(Path(folder, "cases"), labels, cases, size)
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident set becomes the present one
        before = largest_resident_set()
        ours = by_us(Path(folder, "cases"))
        added = largest_resident_set() - before
        return ours / cases, ours / by_nnunet(Path(folder, "cases"), labels), added


def measures(quick: bool = False, cases: int = 20) -> list[Measure]:
    """The figures of this file."""
    torch.set_num_threads(1)
    result = []
    for labels, number, bound in ((3, 2 if quick else cases, 3), (118, 1 if quick else max(2, cases // 5), 10)):
        seconds, times, memory = ratio(labels, number, 64 if quick else 128)
        name = f"evaluate, {labels} labels, {number} cases"
        result += [
            Measure(f"{name}, nnU-Net's evaluator = 1", times, bound=bound),
            Measure(f"{name}, CPU seconds of a case", seconds, "s"),
            Measure(f"{name}, additional memory", memory, "GiB", 1),
        ]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test with small sizes")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file to which the figures are written as well")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    show(measures(arguments.quick, arguments.cases), arguments)


if __name__ == "__main__":
    main()
