"""`nnunet-dg stress`: trained models on corrupted images, and with noise on their weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pooch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from nnunet_dg.evaluation.corruptions import CORRUPTIONS, seed_of
from nnunet_dg.evaluation.plots import draw_curves, grid
from nnunet_dg.evaluation.style import NAMES
from nnunet_dg.nnunet.results import Source, names_of
from nnunet_dg.nnunet.trained_model import Case, ModelError, TrainedModel
from nnunet_dg.nnunet.weight_noise import trained_tensors, with_noise

WEIGHT_NOISE = "weight noise"
WEIGHT_NOISE_STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4)
KINDS = (*CORRUPTIONS, WEIGHT_NOISE)
NOTHING = "none"  # the identity of every kind, measured once


@dataclass(frozen=True)
class Measurement:
    """What is changed, how much, in which case, the number of the draw, and a hash of the case's files."""

    kind: str
    strength: float
    case: str
    files: str
    draw: int = 0


def stress(
    sources: Sequence[Source],
    output: Path,
    *,
    images: Path | None = None,
    truths: Path | None = None,
    kinds: Sequence[str] = KINDS,
    folds: Sequence[str] | None = None,
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
        sources: model folders.
        output: a folder; ``stress.csv`` and ``stress.png`` are written there.
        images: with ``truths``, folders of labelled cases; None: the validation cases of the fold.
        truths: see ``images``.
        kinds: of `KINDS`.
        folds: see `TrainedModel`, as ``checkpoint``, ``device`` and ``mirroring``.
        checkpoint: the file of each fold.
        max_cases: the first cases alone.
        draws: of noise on the weights.
        seed: of everything random.
        device: for nnU-Net's predictor.
        mirroring: at test time.

    Returns:
        One row per trainer, kind, strength, case, draw and label.

    Raises:
        ModelError: a model or its cases are not there, models have other cases, or the folder has measurements of
            something else.
    """
    names = names_of(sources)
    if odd := [name for name in names if names.count(name) > 1 or "/" in name]:
        raise ModelError(f"Models need names of their own that can be files' names; got {odd[0]!r}.")
    models = {
        n: TrainedModel(s.path, folds, checkpoint, device, mirroring) for n, s in zip(names, sources, strict=True)
    }
    cases = {name: model.cases(images, truths)[:max_cases] for name, model in models.items()}
    if len({tuple(case.name for case in of) for of in cases.values()}) > 1:
        raise ModelError("The models were validated on other cases. Give the same ones for all: images -i, truths -t.")
    output.mkdir(parents=True, exist_ok=True)
    tables = []
    for name, model in models.items():
        planned = list(_plan(kinds, cases[name], draws))
        record = _Record(output / f"{name}.jsonl", _settings(model, seed, mirroring))
        todo = [measurement for measurement in planned if measurement not in record.scores]
        by_name = {case.name: case for case in cases[name]}
        for measurement in tqdm(todo, name, len(planned), initial=len(planned) - len(todo), unit="prediction"):
            record.add(measurement, measure(model, by_name[measurement.case], measurement, seed))
        tables.append(_table(planned, record.scores, kinds).assign(trainer=name))
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(output / "stress.csv", index=False)
    figure(table)[0].savefig(output / "stress.png", dpi=150)
    return table


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


def measure(model: TrainedModel, case: Case, wanted: Measurement, seed: int) -> dict[str, dict[str, float]]:
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


class _Record:
    """Measurements on disk, one line each behind a line of settings; a line that was cut off does not count."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.scores: dict[Measurement, dict[str, dict[str, float]]] = {}
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        if whole and whole[0] != settings:
            differ = ", ".join(sorted(k for k in settings if whole[0].get(k) != settings[k]))
            raise ModelError(f"{path} has measurements with other {differ}. Choose another folder, or remove the file.")
        for entry in whole[1:]:
            self.scores[Measurement(**entry["measurement"])] = entry["scores"]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in (whole or [settings])))

    def add(self, measurement: Measurement, scores: dict[str, dict[str, float]]) -> None:
        self.scores[measurement] = scores
        with self.path.open("a") as file:
            file.write(json.dumps({"measurement": asdict(measurement), "scores": scores}) + "\n")


def _table(
    planned: Sequence[Measurement], scores: dict[Measurement, dict[str, dict[str, float]]], kinds: Sequence[str]
) -> pd.DataFrame:
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
        raise ModelError("In no case is there anything to find. Choose other cases.")
    result, axes = grid(kinds)
    for ax, kind in zip(axes, kinds, strict=True):
        draw_curves(ax, cases[cases["kind"] == kind], "strength", "dice", "trainer")
        ax.axvline(identity_of(kind), color="black", linewidth=0.8, linestyle="--")
        strength = CORRUPTIONS[kind].strength if kind in CORRUPTIONS else "noise / root mean square"
        ax.set(xlabel=strength, ylabel=NAMES["dice"], ylim=(0, 1))
        if kind == "gamma":
            ax.set_xscale("log", base=2)
    handles, labels = axes[0].get_legend_handles_labels()
    result.legend(handles, labels, loc="outside lower center", ncols=min(2, len(labels)))
    return result, axes
