"""`nnunet-dg stress`: trained models on corrupted images, and with noise on their weights."""

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
from nnunet_dg.reporting.results import Source, names_of
from nnunet_dg.reporting.style import NAMES
from nnunet_dg.robustness.corruptions import CORRUPTIONS, seed_of
from nnunet_dg.robustness.stress_record import Measurement, Record, Scores
from nnunet_dg.robustness.trained_model import Case, ModelError, TrainedModel
from nnunet_dg.robustness.weight_noise import trained_tensors, with_noise

WEIGHT_NOISE = "weight noise"
WEIGHT_NOISE_STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4)
KINDS = (*CORRUPTIONS, WEIGHT_NOISE)
NOTHING = "none"  # the identity of every kind, measured once


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
    """Metrics of models under rising corruption of raw images, and under Gaussian noise on their trained weights.

    Corrupted images go through nnU-Net's own preprocessing and predictor. Noise on weights is relative: a strength of
    0.1 adds noise of a tenth of each tensor's root mean square; frozen extractors are left alone. Every measurement is
    kept in ``NAME.jsonl``, and a second call goes on after the last.

    Args:
        sources: Model folders.
        output: Folder for ``NAME.jsonl``, ``stress.csv`` and ``stress.png``.
        images: Folder of images, given together with ``truths``; None: the validation cases of the fold.
        truths: Folder of their segmentations.
        kinds: Some of `KINDS`.
        folds, checkpoint, device, mirroring: See `TrainedModel`.
        max_cases: Only the first cases.
        draws: Number of draws of noise on the weights.
        seed: Seed of all random numbers.

    Returns:
        One row per trainer, kind, strength, case, draw and label.

    Raises:
        ModelError: A model or its cases are missing or damaged, or the models have different cases.
        RecordError: The folder has measurements of something else.
        SettingsError: A kind is unknown or given twice, or a fold.
        DataError: Another process measures in this folder.
        ExtraError: The extra "report" is not installed.
    """
    require("report", "A stress test")
    _check_kinds(kinds)
    models = {name: TrainedModel(path, folds, checkpoint, device, mirroring) for name, path in _named(sources).items()}
    cases = {name: model.cases(images, truths)[:max_cases] for name, model in models.items()}
    _check_same(cases)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, "nnunet-dg stress"):
        tables = []
        for name, model in models.items():
            planned = list(_plan(kinds, cases[name], draws))
            record = Record(output / f"{name}.jsonl", _settings(model, seed, mirroring))
            _measure_all(name, model, cases[name], planned, record, seed)
            tables.append(_table(planned, record.scores, kinds).assign(trainer=name))
        table = pd.concat(tables, ignore_index=True)
        _write(table, output)
    return table


def _check_same(cases: Mapping[str, Sequence[Case]]) -> None:
    if len({tuple(case.name for case in of) for of in cases.values()}) > 1:
        raise ModelError("The models were validated on other cases. Give the same ones for all: images -i, truths -t.")


def _write(table: pd.DataFrame, output: Path) -> None:
    write_csv(output / "stress.csv", table)
    with replacing(output / "stress.png") as partial:
        figure(table)[0].savefig(partial, dpi=150, format="png")


def _measure_all(
    name: str, model: TrainedModel, cases: Sequence[Case], planned: Sequence[Measurement], record: Record, seed: int
) -> None:
    """Measure what the record lacks."""
    if record.damaged:
        print(f"{record.path}: {record.damaged} damaged lines; what they held is measured again.", flush=True)
    todo = [measurement for measurement in planned if measurement not in record.scores]
    by_name = {case.name: case for case in cases}
    for case in dict.fromkeys(measurement.case for measurement in todo):
        model.read(by_name[case])  # a file that cannot be read is better known before hours of predictions than after
    with tqdm(todo, name, len(planned), initial=len(planned) - len(todo), unit="prediction") as progress:
        for measurement in progress:
            record.add(measurement, measure(model, by_name[measurement.case], measurement, seed))


def _named(sources: Sequence[Source]) -> dict[str, Path]:
    """Folders by names that can be files' names, also where upper and lower case are not distinguished."""
    names = names_of(sources)
    folded = [name.casefold() for name in names]
    for name in names:
        if folded.count(name.casefold()) > 1:
            raise ModelError(f"Models need names of their own: {name!r} is there twice. Give others: NAME=MODEL.")
        if name != name.strip(" .") or set(name) & set('/\\:*?"<>|') or not name.isprintable() or len(name) > 100:
            raise ModelError(
                f"Models need names of their own that can be files' names; got {name!r}. Accepted: 100 characters, "
                f'without control characters and / \\ : * ? " < > |, no dot or space at either end. Give another: '
                f"NAME=MODEL."
            )
    return {name: source.path for name, source in zip(names, sources, strict=True)}


def _check_kinds(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS or list(kinds).count(kind) > 1:
            raise SettingsError(f"--kinds must be among {', '.join(map(repr, KINDS))}, each once; got {kind!r}.")


def _settings(model: TrainedModel, seed: int, mirroring: bool) -> dict[str, Any]:
    """What measurements must have in common to be in one file."""
    checkpoints = [pooch.file_hash(str(path), "sha256") for path in model.checkpoints]
    versions = {package: version(package) for package in ("nnunet-dg", "nnunetv2")}
    return {"checkpoints": checkpoints, "seed": seed, "mirroring": mirroring, "versions": versions}


def strengths_of(kind: str) -> tuple[float, ...]:
    """The strengths that are measured, the identity among them."""
    return CORRUPTIONS[kind].strengths if kind in CORRUPTIONS else WEIGHT_NOISE_STRENGTHS


def identity_of(kind: str) -> float:
    """The strength that changes nothing."""
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
    """Metrics by label of one case, its image or the model's weights changed as ``wanted`` says."""
    image, truth, properties = model.read(case)
    if wanted.kind in CORRUPTIONS:
        corruption, own_seed = CORRUPTIONS[wanted.kind], seed_of(case.name, seed)
        image = model.in_range(corruption(image, wanted.strength, own_seed, properties["spacing"]))
    if wanted.kind != WEIGHT_NOISE:
        return model.score(image, truth, properties)
    kept, tensors = model.predictor.list_of_parameters, trained_tensors(model.network)
    try:
        model.predictor.list_of_parameters = [
            with_noise(state, tensors, wanted.strength, seed_of(f"draw {wanted.draw} of model {number}", seed))
            for number, state in enumerate(kept)
        ]
        return model.score(image, truth, properties)
    finally:
        model.predictor.list_of_parameters = kept


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
    of = ["trainer", "kind", "strength", "case"]
    return table.groupby(of, sort=False)[metric].mean().dropna().reset_index()


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice in percent, one row per kind and strength, one column per trainer."""
    means = mean_of_cases(table).pivot_table(index=["kind", "strength"], columns="trainer", values="dice", sort=False)
    return (100 * means).round(1).reset_index().rename_axis(columns=None).sort_values(["kind", "strength"])


def figure(table: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    """One panel per kind: Dice over strength, one line per trainer, the identity dashed."""
    cases = mean_of_cases(table)
    kinds = list(dict.fromkeys(cases["kind"]))
    if not kinds:
        raise ModelError("No case has anything to find. Choose other cases.")
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
