"""Which prediction belongs to which truth."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

from nnunet_dg.errors import DataError
from nnunet_dg.files import read_json
from nnunet_dg.formats import Summary
from nnunet_dg.names import foreign_path

MISSING = ("error", "zero", "skip")  # a missing prediction is an error, counts as an empty one, or is left out


class EvaluationError(DataError):
    """Nothing was evaluated, and why."""


def pair(truths: Path, predictions: Path, ending: str, missing: str) -> dict[str, tuple[Path, Path | None]]:
    """``{case: (truth, prediction)}``, sorted; None where a prediction is missing and may be.

    Hidden files are no cases, such as those that macOS leaves.

    Args:
        truths: A folder.
        predictions: A folder. The cases that nnU-Net's ``summary.json`` in it names are expected, else all truths.
        ending: Of all files.
        missing: One of `MISSING`.

    Raises:
        EvaluationError: Files are missing, are too many, or are truth and prediction at once.
    """
    if missing not in MISSING:
        raise EvaluationError(f"missing must be one of {', '.join(MISSING)}; got {missing!r}.")
    known, found = _cases(truths, ending), _cases(predictions, ending)
    if truths.samefile(predictions):
        raise EvaluationError(f"{truths} is given for truths and for predictions. Give two different folders.")
    validated = validated_cases(predictions, ending)
    expected = known if validated is None else {case: path for case, path in known.items() if case in validated}
    if extra := sorted(set(found) - set(expected)):
        raise EvaluationError(f"{_some(extra)} in {predictions} without a truth in {truths}.")
    if not found:
        raise EvaluationError(f"No prediction: there is no file *{ending} in {predictions}.")
    absent = sorted(set(expected) - set(found))
    if absent and missing == "error":
        raise EvaluationError(
            f"{_some(absent)} in {truths} without a prediction in {predictions}. Predict them, or say what they are: "
            f"--missing zero counts them as empty, --missing skip leaves them out."
        )
    if same := [c for c, path in found.items() if os.path.realpath(path) == os.path.realpath(expected[c])]:
        raise EvaluationError(f"{found[same[0]]} is a link to the truth of this case. Give the prediction itself.")
    cases = found if missing == "skip" else expected
    return {case: (expected[case], found.get(case)) for case in sorted(cases)}


def validated_cases(predictions: Path, ending: str) -> set[str] | None:
    """The cases that nnU-Net evaluated in this folder; None if it did not.

    Raises:
        DataError: There is a ``summary.json`` that is not nnU-Net's.
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
    """Of ``a.nii.gz`` and ``a.nrrd``, one may be older, and nothing says which one is meant."""
    readers = [reader.supported_file_endings for reader in LIST_OF_IO_CLASSES]
    endings = {other for others in readers if ending.lower() in others for other in others} | {ending.lower()}
    for path in files:
        for other in endings:
            case = path.name[: -len(other)]
            if path.name.lower().endswith(other) and case in cases and path != cases[case]:
                raise EvaluationError(f"{cases[case]} and {path} are one case. Remove the one that is not meant.")


def _some(cases: list[str]) -> str:
    return f"{cases[0]!r} is" if len(cases) == 1 else f"{cases[0]!r} and {len(cases) - 1} more are"
