"""Stress tests of trained models: corrupted images, and noise on the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pooch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from nnunet_dg.errors import SettingsError
from nnunet_dg.extras import require
from nnunet_dg.files import locked, replacing, write_csv
from nnunet_dg.reporting.plots import draw_curves, grid
from nnunet_dg.reporting.sources import Source, names_of
from nnunet_dg.reporting.style import NAMES
from nnunet_dg.robustness.corruptions import CORRUPTIONS, seed_of
from nnunet_dg.robustness.stress_record import Measurement, Record, Scores
from nnunet_dg.robustness.trained_model import Case, ModelError, TrainedModel
from nnunet_dg.robustness.weight_noise import trained_tensors, with_noise

WEIGHT_NOISE = "weight noise"
WEIGHT_NOISE_STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4)
KINDS = (*CORRUPTIONS, WEIGHT_NOISE)
NOTHING = "none"  # no change: the identity of every kind, measured only once


def stress(
    sources: Sequence[Source],
    output: Path,
    *,
    images: Path | None = None,
    truths: Path | None = None,
    kinds: Sequence[str] = KINDS,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    max_cases: int | None = None,
    draws: int = 5,
    seed: int = 0,
    device: str = "cuda",
    mirroring: bool = True,
) -> pd.DataFrame:
    """Metrics of models for increasingly corrupted raw images, and with Gaussian noise on their trained weights.

    Images pass through nnU-Net's own preprocessing and predictor. Noise of strength 0.1 is a tenth of each trained
    tensor's root mean square. Measurements are saved in ``NAME.jsonl``, from which a second call resumes.

    Args:
        sources: Model folders.
        output: Folder for ``NAME.jsonl``, ``stress.csv`` and ``stress.png``.
        images, truths: Folders of images and their segmentations; by default the validation cases of the fold.
        kinds: Some of `KINDS`; by default all.
        folds, checkpoint, device, mirroring: See `TrainedModel`.
        max_cases: Maximum number of cases; by default all.
        draws: Number of draws of weight noise.
        seed: Seed of all random numbers.

    Returns:
        One row per trainer, kind, strength, case, draw and label.

    Raises:
        ModelError: A model or its cases are missing or damaged, or the models have different cases.
        RecordError: The folder has measurements with other settings.
        SettingsError: A kind or fold is unknown or given twice.
        DataError: Another process is using the folder.
        ExtraError: The extra "report" is not installed.
    """
    require("report", "A stress test")
    _check_kinds(kinds)
    models = {name: TrainedModel(path, folds, checkpoint, device, mirroring) for name, path in _named(sources).items()}
    cases = {name: model.cases(images, truths)[:max_cases] for name, model in models.items()}
    _check_same(cases)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, "nnunet-dg stress"):
        records = {n: Record(output / f"{n}.jsonl", _settings(m, seed, mirroring)) for n, m in models.items()}
        tables = [_measured(n, m, cases[n], kinds, draws, records[n], seed) for n, m in models.items()]
        return _write(tables, output)


def _measured(
    name: str, model: TrainedModel, cases: Sequence[Case], kinds: Sequence[str], draws: int, record: Record, seed: int
) -> pd.DataFrame:
    """The table of one model, after measuring what its record lacks."""
    planned = list(_plan(kinds, cases, draws))
    _measure_all(name, model, cases, planned, record, seed)
    return _table(planned, record.scores, kinds).assign(trainer=name)


def _check_same(cases: Mapping[str, Sequence[Case]]) -> None:
    if len({tuple(case.name for case in of_model) for of_model in cases.values()}) > 1:
        raise ModelError(
            "The models were validated on different cases. Give the same cases for all: `images` and `truths`."
        )


def _write(tables: Sequence[pd.DataFrame], output: Path) -> pd.DataFrame:
    """Write the tables of all models as one, and its figure; returns the table."""
    table = pd.concat(tables, ignore_index=True)
    write_csv(output / "stress.csv", table)
    with replacing(output / "stress.png") as partial:
        figure(table)[0].savefig(partial, dpi=150, format="png")
    return table


def _measure_all(
    name: str, model: TrainedModel, cases: Sequence[Case], planned: Sequence[Measurement], record: Record, seed: int
) -> None:
    """Measure what the record lacks."""
    if record.damaged:
        print(f"{record.path}: {record.damaged} damaged lines. Their measurements are repeated.", flush=True)
    todo = [measurement for measurement in planned if measurement not in record.scores]
    by_name = {case.name: case for case in cases}
    for case in dict.fromkeys(measurement.case for measurement in todo):
        model.read(by_name[case])  # report unreadable files before hours of predictions, not after
    with tqdm(todo, name, len(planned), initial=len(planned) - len(todo), unit="prediction") as progress:
        for measurement in progress:
            record.add(measurement, measure(model, by_name[measurement.case], measurement, seed))


def _named(sources: Sequence[Source]) -> dict[str, Path]:
    """Folders by names that can be used as file names, even on file systems that ignore case."""
    names = names_of(sources)
    folded = [name.casefold() for name in names]
    for name in names:
        if folded.count(name.casefold()) > 1:
            raise ModelError(f"Models need different names, but {name!r} is used twice. Rename one: NAME=MODEL.")
        if name != name.strip(" .") or set(name) & set('/\\:*?"<>|') or not name.isprintable() or len(name) > 100:
            raise ModelError(
                f"Models need names that can be file names; got {name!r}. Accepted are up to 100 characters without "
                f'control characters and / \\ : * ? " < > |, and without a dot or space at either end. Rename it: '
                f"NAME=MODEL."
            )
    return {name: source.path for name, source in zip(names, sources, strict=True)}


def _check_kinds(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS or list(kinds).count(kind) > 1:
            raise SettingsError(f"`kinds` must be among {', '.join(map(repr, KINDS))}, each once; got {kind!r}.")


def _settings(model: TrainedModel, seed: int, mirroring: bool) -> dict[str, Any]:
    """The settings that all measurements in one file must share."""
    checkpoints = [pooch.file_hash(str(path), "sha256") for path in model.checkpoints]
    versions = {package: version(package) for package in ("nnunet-dg", "nnunetv2")}
    return {"checkpoints": checkpoints, "seed": seed, "mirroring": mirroring, "versions": versions}


def strengths_of(kind: str) -> tuple[float, ...]:
    """The strengths that are measured, including the identity."""
    return CORRUPTIONS[kind].strengths if kind in CORRUPTIONS else WEIGHT_NOISE_STRENGTHS


def identity_of(kind: str) -> float:
    """The strength that leaves image and weights unchanged."""
    return CORRUPTIONS[kind].identity if kind in CORRUPTIONS else 0.0


def _plan(kinds: Sequence[str], cases: Sequence[Case], draws: int) -> Iterator[Measurement]:
    for case in cases:
        files = sha256("".join(pooch.file_hash(str(path)) for path in (*case.images, case.truth)).encode()).hexdigest()
        yield Measurement(NOTHING, 0.0, case.name, files)
        for kind in kinds:
            for strength in strengths_of(kind):
                if strength != identity_of(kind):
                    for draw in range(draws if kind == WEIGHT_NOISE else 1):
                        yield Measurement(kind, strength, case.name, files, draw)


def measure(model: TrainedModel, case: Case, wanted: Measurement, seed: int) -> Scores:
    """Metrics by label of one case, with its image or the model's weights changed as ``wanted`` specifies."""
    image, truth, properties = model.read(case)
    if wanted.kind in CORRUPTIONS:
        corruption, own_seed = CORRUPTIONS[wanted.kind], seed_of(case.name, seed)
        image = model.in_range(corruption(image, wanted.strength, own_seed, properties["spacing"]))
    if wanted.kind != WEIGHT_NOISE:
        return model.score(image, truth, properties)
    original, tensors = model.predictor.list_of_parameters, trained_tensors(model.network)
    try:
        model.predictor.list_of_parameters = [
            with_noise(state, tensors, wanted.strength, seed_of(f"draw {wanted.draw} of model {number}", seed))
            for number, state in enumerate(original)
        ]
        return model.score(image, truth, properties)
    finally:
        model.predictor.list_of_parameters = original


def _table(planned: Sequence[Measurement], scores: Mapping[Measurement, Scores], kinds: Sequence[str]) -> pd.DataFrame:
    rows = []
    for m in planned:
        places = [(k, identity_of(k)) for k in kinds] if m.kind == NOTHING else [(m.kind, m.strength)]
        for kind, strength in places:
            for label, metrics in scores[m].items():
                row = {"kind": kind, "strength": strength, "case": m.case, "draw": m.draw, "label": label}
                rows.append(row | metrics)
    return pd.DataFrame(rows).sort_values(["kind", "strength", "case", "draw", "label"], ignore_index=True)


def mean_of_cases(table: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """One row per trainer, kind, strength and case: the mean over labels and draws."""
    keys = ["trainer", "kind", "strength", "case"]
    return table.groupby(keys, sort=False)[metric].mean().dropna().reset_index()


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice in percent, one row per kind and strength, one column per trainer."""
    means = mean_of_cases(table).pivot_table(index=["kind", "strength"], columns="trainer", values="dice", sort=False)
    return (100 * means).round(1).reset_index().rename_axis(columns=None).sort_values(["kind", "strength"])


def figure(table: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """One panel per kind with Dice over strength, one line per trainer, and the identity as a dashed line."""
    cases = mean_of_cases(table)
    kinds = list(dict.fromkeys(cases["kind"]))
    if not kinds:
        raise ModelError("Truths and predictions of all cases are empty. Choose other cases.")
    result, axes = grid(kinds)
    for ax, kind in zip(axes, kinds, strict=True):
        draw_curves(ax, cases[cases["kind"] == kind], "strength", "dice", "trainer")
        ax.axvline(identity_of(kind), color="black", linewidth=0.8, linestyle="--")
        strength = CORRUPTIONS[kind].strength if kind in CORRUPTIONS else "noise / root mean square"
        ax.set(xlabel=strength, ylabel=NAMES["dice"], ylim=(0, 1))
        if kind == "gamma":
            ax.set_xscale("log", base=2)
    names = list(dict.fromkeys(table["trainer"]))
    handles: Any = axes[0].containers
    legend = result.legend(handles, names, loc="outside lower center", ncols=min(2, len(names)))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with two $ is not a formula
    return result, axes
