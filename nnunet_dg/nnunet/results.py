"""Scores from what nnU-Net and `nnunet-dg evaluate` leave behind: validations of folds, evaluated test folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunet_dg.evaluation.metrics import METRICS
from nnunet_dg.evaluation.overlay import CaseView
from nnunet_dg.evaluation.report import write_report
from nnunet_dg.evaluation.scores import IN_DOMAIN, UNSEEN
from nnunet_dg.nnunet.domains import FILE as DOMAINS
from nnunet_dg.nnunet.evaluate import NAME, Labels

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

    A source is a results folder of nnU-Net, ``TRAINER__PLANS__CONFIGURATION``, of which every validated fold is read,
    or a folder that `nnunet-dg evaluate` has written to. A validation is read from its ``evaluation.json``, where there
    is one, else from nnU-Net's ``summary.json``, which has Dice alone. One name given several times says repeated
    trainings of one trainer.

    Args:
        sources: of any trainers, plans and folds.
        domains: ``{case: domain}`` of the cases of evaluated folders. Those of results folders are read from the
            dataset's own ``domains.json``.
        trained_on: domains of the training data of the evaluated folders' models.

    Returns:
        The table, with ``prediction_file`` and ``reference_file`` as well.

    Raises:
        ResultsError: nothing is there, or it does not say what it must.
    """
    for source in sources:
        if not source.path.is_dir():
            raise ResultsError(f"There is no folder {source.path}.")
    names = [source.name or default_name(source.path) for source in sources]
    unnamed = Counter(name for name, source in zip(names, sources, strict=True) if source.name is None)
    if twice := sorted(name for name, count in unnamed.items() if count < names.count(name) or count > 1):
        raise ResultsError(
            f"Several results are of {twice[0]}. Say which they are: NAME=PATH with different names, or with one name "
            f"for repeated trainings of one trainer."
        )
    tables, runs = [], Counter[str]()
    for name, source in zip(names, sources, strict=True):
        runs[name] += 1
        if any(source.path.glob("fold_*")):
            table = _read_folds(source.path)
        else:
            table = _read_evaluated(source.path, domains, trained_on)
        tables.append(table.assign(trainer=name, run=runs[name]))
    return pd.concat(tables, ignore_index=True)


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
    scores = read_sources(sources, None if domains is None else _read_json(domains), trained_on)
    return write_report(scores, output, baseline, metric, view)


def default_name(path: Path) -> str:
    """The trainer of a results folder, and its plans where they are not nnU-Net's."""
    trainer, *others = path.resolve().name.split("__")
    return " ".join([trainer, *(p for p in others[:1] if p != "nnUNetPlans")])


def _read_folds(results: Path) -> pd.DataFrame:
    folds = {p.parent.name.removeprefix("fold_"): p for p in sorted(results.glob("fold_*/validation")) if p.is_dir()}
    if not folds:
        raise ResultsError(f"{results} has no validated fold. nnUNetv2_train ... --val validates one.")
    dataset = results.resolve().parent.name
    preprocessed = Path(nnUNet_preprocessed or "", dataset)
    domain_of = _read_json(preprocessed / DOMAINS) if (preprocessed / DOMAINS).is_file() else None
    tables = []
    for fold, validation in folds.items():
        table = _read_scores(validation, results / "dataset.json")
        if domain_of is None:
            table = table.assign(domain=ONE_DOMAIN, setting=IN_DOMAIN)
        else:
            table = _with_domains(table, domain_of, preprocessed / DOMAINS)
            trained_on = {domain_of[case] for case in _training_cases(preprocessed, fold, table, domain_of)}
            table = table.assign(setting=[IN_DOMAIN if d in trained_on else UNSEEN for d in table["domain"]])
        tables.append(table.assign(fold=fold))
    return pd.concat(tables, ignore_index=True)


def _training_cases(preprocessed: Path, fold: str, table: pd.DataFrame, domain_of: Mapping[str, str]) -> list[str]:
    if fold == "all":
        return list(domain_of)
    splits = _read_json(preprocessed / "splits_final.json")
    if not fold.isdecimal() or int(fold) >= len(splits) or set(splits[int(fold)]["val"]) != set(table["case"]):
        raise ResultsError(
            f"Fold {fold} was not validated on the cases that {preprocessed / 'splits_final.json'} names, so it cannot "
            f"be said which domains it was trained on. Put back the splits of that training."
        )
    return list(splits[int(fold)]["train"])


def _read_evaluated(folder: Path, domain_of: Mapping[str, str] | None, trained_on: Collection[str]) -> pd.DataFrame:
    table = _read_scores(folder, folder / "dataset.json").assign(fold="test")
    if domain_of is None:
        return table.assign(domain=ONE_DOMAIN, setting=IN_DOMAIN if ONE_DOMAIN in trained_on else UNSEEN)
    table = _with_domains(table, domain_of, "--domains")
    return table.assign(setting=[IN_DOMAIN if d in trained_on else UNSEEN for d in table["domain"]])


def _with_domains(table: pd.DataFrame, domain_of: Mapping[str, str], source: Path | str) -> pd.DataFrame:
    if unknown := sorted(set(table["case"]) - set(domain_of)):
        raise ResultsError(f"{source} names no domain of case {unknown[0]!r}.")
    return table.assign(domain=table["case"].map(domain_of))


def _read_scores(folder: Path, dataset_json: Path) -> pd.DataFrame:
    """``case``, ``label``, metrics and files, from evaluation.json or nnU-Net's summary.json."""
    if (folder / f"{NAME}.json").is_file():
        return pd.DataFrame(_read_json(folder / f"{NAME}.json")["cases"])
    if not (folder / "summary.json").is_file():
        raise ResultsError(
            f"{folder} holds neither {NAME}.json nor summary.json. First: nnunet-dg evaluate TRUTHS {folder}"
        )
    dataset = _read_json(dataset_json)
    names = {str(tuple(v) if len(v) > 1 else v[0]): name for name, v in Labels.of_dataset(dataset).foreground.items()}
    rows = [
        {
            "case": Path(case["reference_file"]).name.removesuffix(dataset["file_ending"]),
            "label": names[label],
            "dice": metrics["Dice"],
            "prediction_file": case["prediction_file"],
            "reference_file": case["reference_file"],
        }
        for case in _read_json(folder / "summary.json")["metric_per_case"]
        for label, metrics in case["metrics"].items()
    ]
    return pd.DataFrame(rows).reindex(columns=["case", "label", *METRICS, "prediction_file", "reference_file"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error


def view(row: Mapping[str, Any]) -> CaseView | None:
    """Image, truth and prediction of a row of scores, read as nnU-Net reads them; None if they are not all there.

    The image is looked for where nnU-Net has it: in ``imagesTr`` or ``imagesTs`` beside the truth's folder, or in the
    raw dataset of preprocessed truths.
    """
    truth, prediction = Path(row["reference_file"]), row["prediction_file"]
    ending = "".join(truth.suffixes) if truth.name.endswith(".nii.gz") else truth.suffix
    images = _images_of(truth, ending)
    if not images or not prediction or not Path(prediction).is_file() or not truth.is_file():
        return None
    reader = determine_reader_writer_from_dataset_json({"file_ending": ending}, str(truth), verbose=False)()
    image, properties = reader.read_images([str(path) for path in images])
    of_truth, of_prediction = (reader.read_seg(str(path))[0][0] for path in (truth, prediction))
    return CaseView(image, of_truth, of_prediction, tuple(properties["spacing"]))


def _images_of(truth: Path, ending: str) -> list[Path]:
    case = truth.name.removesuffix(ending)
    folders = {
        "labelsTr": truth.parent.parent / "imagesTr",
        "labelsTs": truth.parent.parent / "imagesTs",
        "gt_segmentations": Path(nnUNet_raw or "", truth.parent.parent.name, "imagesTr"),
    }
    folder = folders.get(truth.parent.name)
    if folder is None:
        return []
    return sorted(folder.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"))
