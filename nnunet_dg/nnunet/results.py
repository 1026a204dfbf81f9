"""Scores from what nnU-Net and `nnunet-dg evaluate` leave behind: validations of folds, evaluated test folders."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pooch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunet_dg.evaluation.metrics import METRICS
from nnunet_dg.evaluation.report import write_report
from nnunet_dg.evaluation.scores import IN_DOMAIN, UNSEEN
from nnunet_dg.nnunet.domains import FILE as DOMAINS
from nnunet_dg.nnunet.domains import locate, read_file
from nnunet_dg.nnunet.evaluate import NAME
from nnunet_dg.nnunet.view import view

ONE_DOMAIN = "one domain"


class ResultsError(RuntimeError):
    """Results cannot be read, and why."""


@dataclass(frozen=True)
class Source:
    """Where results are: ``PATH`` or ``NAME=PATH``, as users give it."""

    path: Path
    name: str | None

    @classmethod
    def parse(cls, text: str) -> Source:
        name, equals, path = text.partition("=")
        return cls(Path(path), name) if equals and not Path(text).exists() else cls(Path(text), None)


def read_sources(
    sources: Sequence[Source], domains: Mapping[str, str] | None = None, trained_on: Collection[str] = ()
) -> pd.DataFrame:
    """The table of scores (see `nnunet_dg.evaluation.scores`) of several results.

    A source is a results folder of nnU-Net, ``TRAINER__PLANS__CONFIGURATION``, of which every validated fold is read
    (fold ``all`` was validated on what it was trained on, and is left out), or a folder that `nnunet-dg evaluate` has
    written to. A validation is read from its ``evaluation.json``, where there is one, else from nnU-Net's
    ``summary.json``, which has Dice alone. Sources of one name are parts of one training's results where they have no
    case of a fold in common, and repeated trainings where they have.

    Args:
        sources: of any trainers, plans and folds.
        domains: ``{case: domain}`` of the cases of evaluated folders. Those of results folders are read from the
            dataset's own ``domains.json``; without one they are of one domain.
        trained_on: domains of the training data of the evaluated folders' models.

    Returns:
        The table, with ``prediction_file`` and ``reference_file`` as well.

    Raises:
        ResultsError: nothing is there, or it does not say what it must.
    """
    names = names_of(sources)
    tables: list[pd.DataFrame] = []
    settings: dict[str, dict[str, Any]] = {}
    for name, source in zip(names, sources, strict=True):
        if any(source.path.glob("fold_*")):
            table = _read_folds(source.path, settings)
        else:
            table = _read_evaluated(source.path, domains, trained_on, settings)
        found = set(zip(table["fold"], table["case"], strict=True))
        before = [t for t in tables if t["trainer"].iloc[0] == name]
        overlapping = [t["run"].iloc[0] for t in before if found & set(zip(t["fold"], t["case"], strict=True))]
        tables.append(table.assign(trainer=name, run=1 + max(overlapping, default=0)))
    _refuse_different(settings)
    return pd.concat(tables, ignore_index=True)


def names_of(sources: Sequence[Source]) -> list[str]:
    """The name of each source, given or its trainer's.

    Raises:
        ResultsError: a folder is not there, or a trainer is there twice and was not named.
    """
    for source in sources:
        if not source.path.is_dir():
            raise ResultsError(f"There is no folder {source.path}.")
    names = [source.name or default_name(source.path) for source in sources]
    unnamed = [name for name, source in zip(names, sources, strict=True) if source.name is None]
    if twice := sorted(name for name in unnamed if names.count(name) > 1):
        raise ResultsError(
            f"Several results are of {twice[0]}. Say which they are: NAME=PATH with different names, or with one name "
            f"for repeated trainings of one trainer."
        )
    return names


def _refuse_different(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Numbers of evaluations with other tolerances, or other policies, do not belong into one table."""
    for path, given in settings.items():
        first, expected = next(iter(settings.items()))
        if given != expected:
            raise ResultsError(
                f"{path} was evaluated with {given}, and {first} with {expected}. Evaluate both in one way."
            )


def report(
    sources: Sequence[Source],
    output: Path,
    baseline: str | None = None,
    metric: str = "dice",
    domains: Path | None = None,
    trained_on: Collection[str] = (),
) -> pd.DataFrame:
    """`write_report` of what `read_sources` reads, with pictures of the worst cases where the files are still there.

    Args:
        sources: see `read_sources`.
        output: a folder.
        baseline: see `write_report`.
        metric: likewise.
        domains: a JSON file, see `read_sources`.
        trained_on: likewise.

    Returns:
        The first table, as people read it.

    Raises:
        ResultsError: see `read_sources`.
        ValueError: see `write_report`.
    """
    scores = read_sources(sources, None if domains is None else read_file(domains), trained_on)
    return write_report(scores, output, baseline, metric, view)


def default_name(path: Path) -> str:
    """The trainer of a results folder, and its plans where they are not nnU-Net's."""
    trainer, *others = path.resolve().name.split("__")
    return " ".join([trainer, *(p for p in others[:1] if p != "nnUNetPlans")])


def _read_folds(results: Path, settings: dict[str, dict[str, Any]]) -> pd.DataFrame:
    folds = {p.parent.name.removeprefix("fold_"): p for p in sorted(results.glob("fold_*/validation")) if p.is_dir()}
    if folds.pop("all", None):
        print(f"{results}: fold all is left out, for it was validated on the cases it was trained on.")
    if not folds:
        raise ResultsError(f"{results} has no validated fold. nnUNetv2_train ... --val validates one.")
    preprocessed = Path(nnUNet_preprocessed or "", _read_json(results / "plans.json")["dataset_name"])
    if not nnUNet_preprocessed or not (preprocessed / "splits_final.json").is_file():
        raise ResultsError(
            f"What {results} was trained on is read from nnUNet_preprocessed, and there is no "
            f"{preprocessed / 'splits_final.json'}. Set nnUNet_preprocessed as for the training."
        )
    domain_of = _domains_of(preprocessed)
    if domain_of is None:
        print(f"{preprocessed.name} has no {DOMAINS}: all of its cases count as one domain, in-domain.")
    tables = []
    for fold, validation in folds.items():
        table = _read_scores(validation, results / "dataset.json", settings)
        train = _training_cases(preprocessed, fold, table)
        if domain_of is None:
            tables.append(table.assign(domain=ONE_DOMAIN, setting=IN_DOMAIN, fold=fold))
            continue
        table = _with_domains(table, domain_of, preprocessed / DOMAINS)
        trained_on = {domain_of.get(case) for case in train}
        table["setting"] = [IN_DOMAIN if domain in trained_on else UNSEEN for domain in table["domain"]]
        tables.append(table.assign(fold=fold))
    return pd.concat(tables, ignore_index=True)


def _domains_of(preprocessed: Path) -> dict[str, str] | None:
    """What the raw dataset's ``domains.json`` says, or the preprocessed one's; None without either."""
    path = locate(Path(nnUNet_raw, preprocessed.name) if nnUNet_raw else None, preprocessed)
    return read_file(path) if path.is_file() else None


def _training_cases(preprocessed: Path, fold: str, table: pd.DataFrame) -> list[str]:
    splits = _read_json(preprocessed / "splits_final.json")
    if not fold.isdecimal() or int(fold) >= len(splits) or set(splits[int(fold)]["val"]) != set(table["case"]):
        raise ResultsError(
            f"Fold {fold} was not validated on the cases that {preprocessed / 'splits_final.json'} names, so it cannot "
            f"be said which domains it was trained on. Put back the splits of that training."
        )
    return list(splits[int(fold)]["train"])


def _read_evaluated(
    folder: Path,
    domain_of: Mapping[str, str] | None,
    trained_on: Collection[str],
    settings: dict[str, dict[str, Any]],
) -> pd.DataFrame:
    if folder.resolve().parent.name.startswith("fold_"):
        raise ResultsError(f"{folder} is one fold's validation. Give the results folder, {folder.parent.parent}.")
    table = _read_scores(folder, folder / "dataset.json", settings).assign(fold="test")
    if domain_of is None or not trained_on:
        raise ResultsError(
            f"{folder}: say which case is from which domain, --domains FILE, and which of them the model was trained "
            f"on, --trained-on DOMAIN ...; else nobody knows what was unseen."
        )
    for domain in sorted(set(trained_on) - set(domain_of.values())):
        print(f"{folder}: no case is of domain {domain!r}, which was trained on (--trained-on).")
    table = _with_domains(table, domain_of, "--domains")
    return table.assign(setting=[IN_DOMAIN if d in trained_on else UNSEEN for d in table["domain"]])


def _with_domains(table: pd.DataFrame, domain_of: Mapping[str, str], source: Path | str) -> pd.DataFrame:
    if unknown := sorted(set(table["case"]) - set(domain_of)):
        raise ResultsError(f"{source} names no domain of case {unknown[0]!r}.")
    return table.assign(domain=table["case"].map(domain_of))


def _read_scores(folder: Path, dataset_json: Path, settings: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """``case``, ``label``, metrics and files, from evaluation.json, whose settings are noted, or summary.json."""
    evaluation, summary = folder / f"{NAME}.json", folder / "summary.json"
    if evaluation.is_file():
        content = _read_json(evaluation)
        hashes = {_here(folder, path): digest for path, digest in content["sha256"].items()}
        for path, digest in (hashes | {Path(p): d for p, d in content["sha256_of_truths"].items()}).items():
            if path.is_file() and pooch.file_hash(str(path)) != digest:
                raise ResultsError(f"{path} is not the file that {evaluation} is of. Evaluate again.")
        settings[str(evaluation)] = content["settings"]
        table = pd.DataFrame(content["cases"]).assign(tolerance_mm=content["settings"]["tolerance_mm"])
        return table.assign(prediction_file=[str(_here(folder, p)) if p else "" for p in table["prediction_file"]])
    if not summary.is_file():
        raise ResultsError(
            f"{folder} holds neither {NAME}.json nor summary.json. First: nnunet-dg evaluate TRUTHS {folder}"
        )
    dataset = _read_json(dataset_json)
    names = _names_in_summary(dataset["labels"])
    rows = [
        {
            "case": Path(case["reference_file"]).name.removesuffix(dataset["file_ending"]),
            "label": names.get(label, label),
            "dice": metrics["Dice"],
            "prediction_file": str(_here(folder, case["prediction_file"])),
            "reference_file": case["reference_file"],
        }
        for case in _read_json(summary)["metric_per_case"]
        for label, metrics in case["metrics"].items()
    ]
    return pd.DataFrame(rows).reindex(columns=["case", "label", *METRICS, "prediction_file", "reference_file"])


def _here(folder: Path, path: str) -> Path:
    """A file of that name in the folder, for folders are moved, or else where it was."""
    local = folder / Path(path).name
    return local.resolve() if local.is_file() else Path(path)


def _names_in_summary(labels: Mapping[str, Any]) -> dict[str, str]:
    """Names of labels and regions by what nnU-Net calls them in ``summary.json``: ``1``, ``(1, 2)``, ``(3,)``."""
    keys = {name: [str(v)] if isinstance(v, int) else [str(tuple(v))] for name, v in labels.items()}
    for name, value in labels.items():
        if not isinstance(value, int) and len(value) == 1:
            keys[name].append(str(value[0]))  # where no label is a region, nnU-Net takes it for a plain one
    return {key: name for name, of in keys.items() for key in of}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
