"""Evaluation of a folder of predictions against a folder of truths, both read with nnU-Net's readers."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pooch
import torch
from tqdm import tqdm

from nnunet_dg.datasets.labels import Labels
from nnunet_dg.errors import DataError, ExtraError
from nnunet_dg.evaluation.metrics import DEFAULT_TOLERANCE_MM, METRICS, case_metrics
from nnunet_dg.evaluation.pairs import EvaluationError, pair
from nnunet_dg.evaluation.segmentations import Segmentation, SegmentationReader, reader_of, spacing_of_images
from nnunet_dg.extras import require
from nnunet_dg.files import cell, read_json, replacing, write_json
from nnunet_dg.formats import Dataset

__all__ = ["NAME", "Labels", "Task", "evaluate", "run_all"]

NAME = "evaluation"  # stem of the two output files
SHOWN = 20  # maximum number of cases named in a message


@dataclass(frozen=True)
class Task:
    """The evaluation of one case, in a form that a worker process can run."""

    case: str
    truth: Path
    prediction: Path | None
    reader: SegmentationReader
    tolerance_mm: float
    ignore_affine: bool
    surfaces: bool = True

    def __call__(self) -> list[dict[str, Any]]:
        """One row per label.

        Raises:
            DataError: A file is not a segmentation of the dataset, or prediction and truth do not match.
        """
        truth = self._with_spacing(self.reader.read(self.truth))
        prediction = None if self.prediction is None else self._read_prediction(truth)
        spacing = self._spacing(truth, prediction)
        predicted = np.zeros_like(truth.values) if prediction is None else prediction.values
        labels = self.reader.labels
        metrics = case_metrics(
            predicted, truth.values, spacing, labels.foreground, labels.ignore, self.tolerance_mm, self.surfaces
        )
        files = {"prediction_file": str(self.prediction or ""), "reference_file": str(self.truth)}
        return [{"case": self.case, "label": label} | values | files for label, values in metrics.items()]

    def _spacing(self, truth: Segmentation, prediction: Segmentation | None) -> tuple[float, ...]:
        """The truth's spacing, or the one that nnU-Net writes next to its predictions."""
        for segmentation in (truth, prediction):
            if segmentation is not None and segmentation.spacing is not None:
                return segmentation.spacing
        file = self.truth.with_suffix(".json")
        raise DataError(
            f"{self.truth} has no spacing, which distances need. Write it, in mm, to {file}: "
            f'{{"spacing": [3.0, 0.5, 0.5]}}, in the order of the image axes.'
        )

    def _with_spacing(self, truth: Segmentation) -> Segmentation:
        if truth.spacing is not None:
            return truth
        return replace(truth, spacing=spacing_of_images(self.truth, self.case))

    def _read_prediction(self, truth: Segmentation) -> Segmentation:
        prediction = self.reader.read(Path(self.prediction or ""))
        if prediction.values.shape != truth.values.shape:
            raise DataError(
                f"{prediction.path} and {truth.path} have different shapes: the prediction's is "
                f"{prediction.values.shape}, the truth's {truth.values.shape}. Evaluate files that belong together."
            )
        if not self.ignore_affine:
            prediction.compare(truth)
        return prediction


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
    """Compute Dice, HD95, ASSD and normalized surface Dice of every case and label; `mask_metrics` defines them.

    Writes ``evaluation.csv`` and ``evaluation.json``. Without the extra "report", only Dice is measured, and a line on
    standard error says so.

    Args:
        truths: Folder of segmentations, for example ``labelsTs``.
        predictions: Folder of segmentations with the same names. Predictions of all truths are expected, or, if the
            folder has nnU-Net's ``summary.json``, as the validation of a fold does, of the cases named there.
        dataset_json: File with labels, regions and file ending; by default the one that nnU-Net left next to the
            predictions, or in the results folder that contains them.
        output: Folder to write to; by default ``predictions``.
        missing: One of `pairs.MISSING`.
        tolerance_mm: Tolerance of the normalized surface Dice, in mm.
        processes: Number of cases evaluated at a time.
        ignore_affine: Whether to compare voxel by voxel, with the truth's spacing, even if origin, direction or spacing
            differ.

    Returns:
        One row per case and label.

    Raises:
        DataError: Files are missing, superfluous or unreadable, or do not match each other or ``dataset.json``. All
            cases are tried, all failed ones are named, and nothing is written.
    """
    _check_tolerance(tolerance_mm)
    path = _dataset_json(dataset_json, predictions)
    dataset = read_json(path, Dataset, "nnU-Net leaves a copy in every results folder. Give it as `dataset_json`.")
    labels = Labels.of_dataset(dataset, path)
    pairs = pair(_real(truths), _real(predictions), dataset["file_ending"], missing)
    reader = SegmentationReader(reader_of(dataset, [truth for truth, _ in pairs.values()], path), labels, path)
    surfaces = _can_measure_surfaces()
    tasks = [Task(case, *files, reader, tolerance_mm, ignore_affine, surfaces) for case, files in pairs.items()]
    _check_writable(output := output or predictions)
    rows = [row for case_rows in run_all(tasks, processes, "evaluating", f" with {path}") for row in case_rows]
    table = pd.DataFrame(rows).sort_values(["case", "label"], ignore_index=True)
    settings = {"missing": missing, "tolerance_mm": tolerance_mm, "ignore_affine": ignore_affine}
    _write(table, output, _as_json(table, settings) | _hashes(predictions, pairs))
    return table


def _check_tolerance(tolerance_mm: float) -> None:
    if not 0 <= tolerance_mm < math.inf:
        raise EvaluationError(f"`tolerance_mm` must be a number of mm, 0 or more; got {tolerance_mm:g}.")


def _can_measure_surfaces() -> bool:
    """Whether the extra "report" is installed; if not, say what is left out."""
    try:
        require("report", "Measuring surfaces")
    except ExtraError as error:
        print(f"Only Dice is measured. {error}", file=sys.stderr, flush=True)
        return False
    return True


def run_all(tasks: Sequence[Callable[[], Any]], processes: int, what: str, context: str = "") -> list[Any]:
    """Run the tasks with a progress bar, and return their results in any order.

    Args:
        tasks: Functions without arguments; they must be picklable if several processes run them.
        processes: Number of processes. Several are newly started, with one thread each; a single one is this process.
        what: Label of the progress bar.
        context: Part of the message if several tasks fail, for example `` with dataset.json``.

    Raises:
        EvaluationError: Tasks raised a DataError (the message contains all of them), or a process was killed. Any other
            error of a task is a bug and is raised unchanged.
    """
    results: list[Any] = []
    errors: list[str] = []
    outcomes = _outcomes(tasks, processes)
    with tqdm(desc=what, total=len(tasks), unit="case") as progress, closing(outcomes):
        for outcome in outcomes:
            try:
                results.append(outcome())
            except DataError as error:
                errors.append(str(error))
            except BrokenProcessPool as error:
                raise EvaluationError(
                    f"A process was killed, perhaps because memory ran out ({error}). Use fewer `processes`."
                ) from error
            progress.update()
    if len(errors) > 1:
        more = [f"... and {len(errors) - SHOWN} more"] if len(errors) > SHOWN else []
        errors = [f"{len(errors)} of {len(tasks)} cases cannot be evaluated{context}:", *sorted(errors)[:SHOWN], *more]
    if errors:
        raise EvaluationError("\n".join(errors))
    return results


def _outcomes(tasks: Sequence[Callable[[], Any]], processes: int) -> Generator[Callable[[], Any], None, None]:
    """Yield, for each finished task, a function that returns its result or raises its error."""
    if processes == 1 or len(tasks) == 1:
        yield from tasks
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(tasks)), spawn, torch.set_num_threads, (1,)) as pool:
        try:
            for done in as_completed([pool.submit(task) for task in tasks]):
                yield done.result
        finally:
            pool.shutdown(cancel_futures=True)


def _dataset_json(given: Path | None, predictions: Path) -> Path:
    if given:
        return given
    if not predictions.is_dir():
        raise EvaluationError(f"There is no folder {predictions}.")
    folders = [predictions.absolute(), predictions.absolute().parent.parent]  # a prediction's, or the results folder
    for folder in folders:
        if os.path.lexists(folder / "dataset.json"):
            return folder / "dataset.json"
    raise EvaluationError(
        f"There is no dataset.json, which names labels and file ending, in {folders[0]} or {folders[1]}. Give it as "
        f"`dataset_json`."
    )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve, this does not raise if links form a loop


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise EvaluationError(f"{output} cannot be used as a folder: {reason}. Choose another `output`.") from error
    if not os.access(output, os.W_OK):
        raise EvaluationError(f"{output} cannot be written to. Choose another `output`.")


def _write(table: pd.DataFrame, output: Path, content: dict[str, Any]) -> None:
    """Write both files. Earlier ones are replaced only once both are complete."""
    try:
        with replacing(output / f"{NAME}.csv") as partial:
            table.map(cell).to_csv(partial, index=False, encoding="utf-8", lineterminator="\n")
            write_json(output / f"{NAME}.json", content)
    except OSError as error:
        raise EvaluationError(f"The evaluation cannot be written to {output}: {error.strerror or error}.") from error


def _hashes(predictions: Path, pairs: Mapping[str, tuple[Path, Path | None]]) -> dict[str, dict[str, str]]:
    predicted = [path for _, path in pairs.values() if path is not None]
    predicted += [path for path in [_real(predictions) / "summary.json"] if path.is_file()]
    truths = [truth for truth, _ in pairs.values()]
    return {
        name: {str(path): pooch.file_hash(str(path)) for path in files}
        for name, files in (("sha256", predicted), ("sha256_of_truths", truths))
    }


def _as_json(table: pd.DataFrame, settings: dict[str, Any]) -> dict[str, Any]:
    label_means = table.groupby("label")[list(METRICS)].mean()
    versions = {
        package: version(package)
        for package in ("nnunet-dg", "nnunetv2", "monai")
        if find_spec(package.replace("-", "_"))
    }
    return {
        "settings": settings,
        "versions": versions,
        "foreground_mean": _finite(label_means.mean().to_dict()),
        "mean": {str(label): _finite(values) for label, values in label_means.to_dict("index").items()},
        "cases": [_finite(row) for row in table.to_dict("records")],
    }


def _finite(values: Mapping[Any, Any]) -> dict[str, Any]:
    """The values with NaN replaced by None, since JSON has no NaN."""
    return {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
