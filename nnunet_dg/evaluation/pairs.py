"""Matching predictions with truths."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

from nnunet_dg.errors import DataError
from nnunet_dg.files import read_json
from nnunet_dg.formats import Summary
from nnunet_dg.names import foreign_path

MISSING = ("error", "zero", "skip")  # a missing prediction is an error, counts as empty, or is left out


class EvaluationError(DataError):
    """Nothing was evaluated; the message says why."""


def pair(truths: Path, predictions: Path, ending: str, missing: str) -> dict[str, tuple[Path, Path | None]]:
    """``{case: (truth, prediction)}``, sorted. A prediction is None if it is missing and ``missing`` is ``"zero"``.

    Hidden files, such as those that macOS leaves, are ignored.

    Args:
        truths: Folder of truths.
        predictions: Folder of predictions. If it has nnU-Net's ``summary.json``, the cases named there are expected,
            otherwise all truths.
        ending: File ending of all cases.
        missing: One of `MISSING`.

    Raises:
        EvaluationError: Files are missing or superfluous, or one file is both truth and prediction.
    """
    if missing not in MISSING:
        raise EvaluationError(f"`missing` must be one of {', '.join(MISSING)}; got {missing!r}.")
    known, found = _cases(truths, ending), _cases(predictions, ending)
    if truths.samefile(predictions):
        raise EvaluationError(f"{truths} is given for both truths and predictions. Give two different folders.")
    validated = validated_cases(predictions, ending)
    expected = known if validated is None else {case: path for case, path in known.items() if case in validated}
    if extra := sorted(set(found) - set(expected)):
        raise EvaluationError(f"{_some(extra)} in {predictions} without a truth in {truths}. Remove or add files.")
    if not found:
        raise EvaluationError(f"No prediction found: there is no file *{ending} in {predictions}.")
    absent = sorted(set(expected) - set(found))
    if absent and missing == "error":
        raise EvaluationError(
            f"{_some(absent)} in {truths} without a prediction in {predictions}. Predict them, or set `missing` to "
            f"zero, to count them as empty, or to skip, to leave them out."
        )
    if same := [c for c, path in found.items() if os.path.realpath(path) == os.path.realpath(expected[c])]:
        raise EvaluationError(f"{found[same[0]]} is a link to the truth of this case. Give the prediction itself.")
    cases = found if missing == "skip" else expected
    return {case: (expected[case], found.get(case)) for case in sorted(cases)}


def validated_cases(predictions: Path, ending: str) -> set[str] | None:
    """The cases that nnU-Net evaluated in this folder; None if there is no ``summary.json``.

    Raises:
        DataError: The ``summary.json`` was not written by nnU-Net.
    """
    summary = predictions / "summary.json"
    if not os.path.lexists(summary):
        return None
    advice = "nnUNetv2_train ... --val writes it again; without it, all truths are expected."
    cases = read_json(summary, Summary, advice)["metric_per_case"]
    return {foreign_path(case["reference_file"]).name.removesuffix(ending) for case in cases}


def _cases(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise EvaluationError(f"There is no folder {folder}.")
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise EvaluationError(f"The folder {folder} cannot be read: {error.strerror or error}.") from error
    cases = {path.name.removesuffix(ending): path for path in files if path.name.endswith(ending)}
    _refuse_other_endings(cases, files, ending)
    return cases


def _refuse_other_endings(cases: dict[str, Path], files: Iterable[Path], ending: str) -> None:
    """Refuse a case with two files, such as ``a.nii.gz`` and ``a.nrrd``: it is unclear which one is current."""
    readers = [reader.supported_file_endings for reader in LIST_OF_IO_CLASSES]
    endings = {other for others in readers if ending.lower() in others for other in others} | {ending.lower()}
    for path in files:
        for other in endings:
            case = path.name[: -len(other)]
            if path.name.lower().endswith(other) and case in cases and path != cases[case]:
                raise EvaluationError(f"{cases[case]} and {path} are the same case. Remove the one that is outdated.")


def _some(cases: list[str]) -> str:
    return f"{cases[0]!r} is" if len(cases) == 1 else f"{cases[0]!r} and {len(cases) - 1} more are"
