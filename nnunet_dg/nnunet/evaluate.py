"""`nnunet-dg evaluate`: a folder of predictions against a folder of truths, read as nnU-Net reads them."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pooch
import torch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_dg.evaluation.metrics import DEFAULT_TOLERANCE_MM, METRICS, case_metrics
from nnunet_dg.nnunet.pairs import EvaluationError, pair

NAME = "evaluation"  # of the files written beside the predictions


@dataclass(frozen=True)
class Labels:
    """What ``dataset.json`` says: ``{name: integers}`` of the foreground, regions included, and what is ignored."""

    foreground: dict[str, list[int]]
    ignore: int | None

    @classmethod
    def of_dataset(cls, dataset: Mapping[str, Any]) -> Labels:
        labels = dict(dataset["labels"])
        ignore = labels.pop("ignore", None)
        labels.pop("background", None)
        return cls({name: [v] if isinstance(v, int) else list(v) for name, v in labels.items()}, ignore)


@dataclass(frozen=True)
class Task:
    """One case: what a worker process needs to evaluate it."""

    case: str
    truth: Path
    prediction: Path | None
    reader: type[BaseReaderWriter]
    labels: Labels
    tolerance_mm: float
    ignore_affine: bool

    def __call__(self) -> list[dict[str, Any]]:
        """One row per label.

        Raises:
            ValueError: prediction and truth are not of one geometry.
        """
        truth, properties = self._read(self.truth)
        prediction = np.zeros_like(truth)
        if self.prediction is not None:
            prediction, predicted_properties = self._read(self.prediction)
            if not self.ignore_affine and truth.shape == prediction.shape:
                self._compare(properties, predicted_properties)
        try:
            metrics = case_metrics(
                prediction[0], truth[0], properties["spacing"], self.labels.foreground, self.labels.ignore,
                self.tolerance_mm,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{self.prediction} does not fit {self.truth}: {error}.") from error
        files = {"prediction_file": str(self.prediction or ""), "reference_file": str(self.truth)}
        return [{"case": self.case, "label": label} | values | files for label, values in metrics.items()]

    def _read(self, path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
        try:
            return self.reader().read_seg(str(path))
        except Exception as error:  # five libraries read files for nnU-Net, and each raises what it likes
            raise ValueError(f"{path} cannot be read: {error}") from error

    def _compare(self, truth: dict[str, Any], prediction: dict[str, Any]) -> None:
        for what, expected in _geometry(truth).items():
            got = _geometry(prediction).get(what, ())
            if np.size(expected) != np.size(got) or not np.allclose(expected, got, rtol=1e-3, atol=1e-3):
                raise ValueError(
                    f"{self.prediction} does not lie where {self.truth} lies: its {what} is {_numbers(got)}, the "
                    f"truth's {_numbers(expected)}. Evaluate what belongs together, or compare voxel by voxel with "
                    f"--ignore-affine."
                )


def evaluate(
    truths: Path,
    predictions: Path,
    *,
    dataset_json: Path | None = None,
    output: Path | None = None,
    missing: str = "error",
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
    processes: int = 2,
    ignore_affine: bool = False,
) -> pd.DataFrame:
    """Dice, HD95, ASSD and normalized surface Dice of every case and label; see `mask_metrics` for what they are.

    Writes ``evaluation.csv`` and ``evaluation.json``.

    Args:
        truths: a folder of segmentations, for example ``labelsTs``.
        predictions: a folder of segmentations of the same names. Where nnU-Net left a ``summary.json`` in it, as in the
            validation of a fold, the cases that it names are expected, else all truths.
        dataset_json: says labels, regions and file ending; None: the one that nnU-Net left beside the predictions, or
            in the results folder that they are in.
        output: a folder; None: ``predictions``.
        missing: one of `pairs.MISSING`.
        tolerance_mm: of the normalized surface Dice.
        processes: how many cases are evaluated at a time.
        ignore_affine: also if origin, direction or spacing of prediction and truth differ; the truth's spacing counts.

    Returns:
        One row per case and label.

    Raises:
        EvaluationError: files are missing, too many, or do not fit each other.
    """
    if not tolerance_mm >= 0:
        raise EvaluationError(f"--tolerance is in mm, 0 or more; got {tolerance_mm:g}.")
    dataset = _read_dataset(dataset_json, predictions)
    pairs = pair(truths.resolve(), predictions.resolve(), dataset["file_ending"], missing)
    example = next(iter(pairs.values()))[0]
    reader = determine_reader_writer_from_dataset_json(dataset, str(example), verbose=False)
    labels = Labels.of_dataset(dataset)
    tasks = [Task(c, *files, reader, labels, tolerance_mm, ignore_affine) for c, files in pairs.items()]
    output = output or predictions
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise EvaluationError(f"{output} cannot be written to. Choose another folder with -o.")
    rows = [row for of_case in run_all(tasks, processes, "evaluating") for row in of_case]
    table = pd.DataFrame(rows).sort_values(["case", "label"], ignore_index=True)
    settings = {"missing": missing, "tolerance_mm": tolerance_mm, "ignore_affine": ignore_affine}
    table.to_csv(output / f"{NAME}.csv", index=False)
    files = [path for _, path in pairs.values() if path is not None]
    files += [path for path in [predictions.resolve() / "summary.json"] if path.is_file()]
    hashes = {
        name: {str(path): pooch.file_hash(str(path)) for path in of}
        for name, of in (("sha256", files), ("sha256_of_truths", [truth for truth, _ in pairs.values()]))
    }
    content = _as_json(table, settings) | hashes
    (output / f"{NAME}.json").write_text(json.dumps(content, indent=1) + "\n")
    return table


def run_all(tasks: Sequence[Callable[[], Any]], processes: int, what: str) -> list[Any]:
    """What the tasks return, in any order, with a progress bar.

    Several processes are fresh ones with one thread each; a single one is this process.

    Raises:
        EvaluationError: a task raised a ValueError or could not read a file, or a process was killed.
    """
    progress = partial(tqdm, desc=what, total=len(tasks), unit="case")
    try:
        if processes == 1 or len(tasks) == 1:
            return [task() for task in progress(tasks)]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(tasks)), spawn, torch.set_num_threads, (1,)) as pool:
            try:
                return [done.result() for done in progress(as_completed([pool.submit(task) for task in tasks]))]
            finally:
                pool.shutdown(cancel_futures=True)
    except BrokenProcessPool as error:
        raise EvaluationError(f"A process was killed, out of memory perhaps: try -np 1 ({error}).") from error
    except (ValueError, RuntimeError, OSError) as error:
        raise EvaluationError(str(error)) from error


def _read_dataset(given: Path | None, predictions: Path) -> dict[str, Any]:
    if not predictions.is_dir():
        raise EvaluationError(f"There is no folder {predictions}.")
    predictions = predictions.absolute()
    usual = [predictions / "dataset.json", predictions.parent.parent / "dataset.json"]  # nnUNetv2_predict, fold_X
    path = next((path for path in ([given] if given else usual) if path.is_file()), None)
    if path is None:
        raise EvaluationError(
            f"No dataset.json: {given or 'none in ' + ' or '.join(str(u.parent) for u in usual)}. Name it "
            f"with -djfile; it says labels and file ending."
        )
    try:
        dataset = dict(json.loads(path.read_text()))
    except ValueError as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from error
    if lacking := [key for key in ("labels", "file_ending") if key not in dataset]:
        raise EvaluationError(f"{path} has no {lacking[0]!r}.")
    return dataset


def _geometry(properties: dict[str, Any]) -> dict[str, Any]:
    """What a reader of nnU-Net's says of where an image lies: more than the spacing for some file formats."""
    spatial = properties.get("sitk_stuff") or {}
    affine = (properties.get("nibabel_stuff") or {}).get("original_affine")
    geometry = {"spacing": properties["spacing"]} | {k: spatial[k] for k in ("origin", "direction") if k in spatial}
    return geometry if affine is None else geometry | {"affine": affine}


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in np.ravel(values)) + ")"


def _as_json(table: pd.DataFrame, settings: dict[str, Any]) -> dict[str, Any]:
    of_label = table.groupby("label")[list(METRICS)].mean()
    versions = {package: version(package) for package in ("nnunet-dg", "nnunetv2", "monai")}
    return {
        "settings": settings,
        "versions": versions,
        "foreground_mean": _finite(of_label.mean().to_dict()),
        "mean": {str(label): _finite(values) for label, values in of_label.to_dict("index").items()},
        "cases": [_finite(row) for row in table.to_dict("records")],
    }


def _finite(values: Mapping[Any, Any]) -> dict[str, Any]:
    """NaN as null: JSON has none."""
    return {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
