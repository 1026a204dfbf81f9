"""Reading the scores of a folder: from ``evaluation.json`` of `nnunet-dg evaluate`, or nnU-Net's ``summary.json``."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pooch

from nnunet_dg import formats
from nnunet_dg.errors import DataError
from nnunet_dg.evaluation.evaluate import NAME, Labels
from nnunet_dg.evaluation.metrics import METRICS
from nnunet_dg.files import read_json
from nnunet_dg.names import foreign_path

EVALUATION, SUMMARY = f"{NAME}.json", "summary.json"
COLUMNS = ["case", "label", *METRICS, "prediction_file", "reference_file"]


class ResultsError(DataError):
    """Results cannot be read; the message says why."""


@dataclass(frozen=True)
class Record:
    """A table with `COLUMNS`, and the settings of its evaluation, ``{path of evaluation.json: settings}``."""

    table: pd.DataFrame
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_record(folder: Path, dataset: Path, otherwise: str = "") -> Record:
    """The scores of a folder of predictions, from ``evaluation.json`` or, without one, from ``summary.json``.

    Args:
        folder: Folder of predictions.
        dataset: nnU-Net's ``dataset.json``, which names the labels in ``summary.json``.
        otherwise: Command that writes ``summary.json`` again; empty if there is none.

    Raises:
        DataError: Neither file exists, or the file cannot be read, is inconsistent, or belongs to other segmentations.
    """
    evaluation, summary = folder / EVALUATION, folder / SUMMARY
    again = f"Evaluate again: nnunet-dg evaluate TRUTHS {shlex.quote(str(folder))}"
    again += f", or predict again: {otherwise}" if otherwise else "."
    if evaluation.is_file():
        content = read_json(evaluation, formats.Evaluation, again)
        return Record(_evaluated_table(folder, evaluation, content, again), {str(evaluation): content["settings"]})
    if not summary.is_file():
        raise ResultsError(f"{folder} contains neither {EVALUATION} nor {SUMMARY}. {again}")
    advice = f"To write it again: {otherwise}" if otherwise else again
    return Record(_summary_table(folder, summary, read_json(dataset, formats.Dataset), dataset, advice))


def summary_cases(folder: Path, ending: str) -> set[str]:
    """The cases that nnU-Net validated in this folder; empty if it has no ``summary.json``."""
    if not (folder / SUMMARY).is_file():
        return set()
    cases = read_json(folder / SUMMARY, formats.ValidationSummary)["metric_per_case"]
    return {_case_of(case["reference_file"], ending) for case in cases}


def _evaluated_table(folder: Path, evaluation: Path, content: formats.Evaluation, again: str) -> pd.DataFrame:
    """The rows of ``evaluation.json``, after checking that the evaluated files have not changed."""
    _refuse_repeated(evaluation, [(row["case"], row["label"]) for row in content["cases"]], again)
    for path, digest in _hashed_files(folder, content).items():
        if path.is_file() and _hash(path) != digest:
            raise ResultsError(f"{path} has changed since {evaluation} was written. {again}")
    table = pd.DataFrame([row | {"prediction_file": _here(folder, row["prediction_file"])} for row in content["cases"]])
    table = table.reindex(columns=COLUMNS)
    return table.astype(dict.fromkeys(METRICS, float)).assign(tolerance_mm=content["settings"]["tolerance_mm"])


def _hash(path: Path) -> str:
    try:
        return str(pooch.file_hash(str(path)))
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror or error}.") from error


def _hashed_files(folder: Path, content: formats.Evaluation) -> dict[Path, str]:
    """The files whose hashes are compared, ``{path: SHA-256}``.

    A record may name any path on the disk. Only these are read: files in its own folder, and files named like its cases
    in one folder of truths and in one other folder of predictions. `evaluate` writes no others.
    """
    digests = {folder / foreign_path(path).name: digest for path, digest in content["sha256"].items()}
    elsewhere = [row for row in content["cases"] if not (folder / foreign_path(row["prediction_file"]).name).is_file()]
    digests |= _of_one_folder({row["prediction_file"]: row["case"] for row in elsewhere}, content["sha256"])
    truths = {row["reference_file"]: row["case"] for row in content["cases"]}
    return digests | _of_one_folder(truths, content["sha256_of_truths"])


def _of_one_folder(cases: Mapping[str, str], digests: Mapping[str, str]) -> dict[Path, str]:
    """``{path: SHA-256}`` of files in ``{path: case}`` that are named like their case; empty if in several folders."""
    found = {Path(path): digests[path] for path, case in cases.items() if path in digests and _is_of(path, case)}
    return found if len({path.parent for path in found}) == 1 else {}


def _is_of(path: str, case: str) -> bool:
    return Path(path).is_absolute() and Path(path).name.startswith(f"{case}.")


def _summary_table(
    folder: Path, summary: Path, dataset: formats.Dataset, dataset_file: Path, advice: str
) -> pd.DataFrame:
    """The rows of nnU-Net's ``summary.json``."""
    labels = Labels.of_dataset(dataset, dataset_file)
    names = {tuple(int(value) for value in values): name for name, values in labels.foreground.items()}
    content = read_json(summary, formats.ValidationSummary, advice)
    if unknown := sorted({k for c in content["metric_per_case"] for k in c["metrics"] if _numbers_in(k) not in names}):
        raise ResultsError(f"{summary} has the label {unknown[0]!r}, which is not one of {dataset_file}.")
    rows: list[dict[str, Any]] = [
        {
            "case": _case_of(case["reference_file"], dataset["file_ending"]),
            "label": names[_numbers_in(label)],
            "dice": metrics["Dice"],
            "prediction_file": _here(folder, case["prediction_file"]),
            "reference_file": case["reference_file"],
        }
        for case in content["metric_per_case"]
        for label, metrics in case["metrics"].items()
    ]
    _refuse_repeated(summary, [(row["case"], row["label"]) for row in rows], advice)
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _refuse_repeated(path: Path, rows: Sequence[tuple[str, str]], advice: str) -> None:
    repeated = [row for row, count in Counter(rows).items() if count > 1]
    if repeated:
        case, label = repeated[0]
        raise ResultsError(f"{path} has the case {case!r} twice, with the label {label!r}. {advice}".rstrip())


def _case_of(file: str, ending: str) -> str:
    return foreign_path(file).name.removesuffix(ending)


def _here(folder: Path, path: str) -> str:
    """The file of that name in the folder, which may have been moved; if there is none, the path unchanged."""
    local = folder / foreign_path(path).name
    return str(local.resolve()) if local.is_file() else path


def _numbers_in(label: str) -> tuple[int, ...]:
    """The numbers of a label or region in ``summary.json``: ``1``, ``(1.0, 2)``, ``(3,)``; empty if it is neither."""
    parts = [part.strip().removesuffix(".0") for part in label.strip("()").split(",") if part.strip()]
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()
