"""Which prediction belongs to which truth."""

from __future__ import annotations

import json
from pathlib import Path

MISSING = ("error", "zero", "skip")  # a missing prediction is an error, counts as an empty one, or is left out


class EvaluationError(RuntimeError):
    """Nothing was evaluated, and why."""


def pair(truths: Path, predictions: Path, ending: str, missing: str) -> dict[str, tuple[Path, Path | None]]:
    """``{case: (truth, prediction)}``, sorted; None where a prediction is missing and may be.

    Args:
        truths: a folder.
        predictions: a folder. The cases that a ``summary.json`` of nnU-Net's in it names are expected, else all truths.
        ending: of all files.
        missing: one of `MISSING`.

    Raises:
        EvaluationError: files are missing, or are too many.
    """
    if missing not in MISSING:
        raise EvaluationError(f"missing must be one of {', '.join(MISSING)}; got {missing!r}.")
    known, found = _cases(truths, ending), _cases(predictions, ending)
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
    cases = found if missing == "skip" else expected
    return {case: (expected[case], found.get(case)) for case in sorted(cases)}


def _cases(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise EvaluationError(f"There is no folder {folder}.")
    return {path.name.removesuffix(ending): path for path in folder.iterdir() if path.name.endswith(ending)}


def _some(cases: list[str]) -> str:
    return f"{cases[0]!r} is" if len(cases) == 1 else f"{cases[0]!r} and {len(cases) - 1} more are"


def validated_cases(predictions: Path, ending: str) -> set[str] | None:
    """The cases that nnU-Net evaluated in this folder; None if it did not."""
    summary = predictions / "summary.json"
    if not summary.is_file():
        return None
    cases = json.loads(summary.read_text())["metric_per_case"]
    return {Path(case["reference_file"]).name.removesuffix(ending) for case in cases}
