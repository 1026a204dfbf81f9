"""Reading scores from validations of nnU-Net's folds and from folders that `nnunet-dg evaluate` has evaluated."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunet_dg import formats
from nnunet_dg.datasets.domains import FILE as DOMAINS
from nnunet_dg.datasets.domains import UNNAMED, locate, read_file
from nnunet_dg.datasets.split_dataset import number_of
from nnunet_dg.errors import DataError
from nnunet_dg.evaluation.records import EVALUATION, SUMMARY, ResultsError, read_record, summary_cases
from nnunet_dg.extras import require
from nnunet_dg.files import read_json, read_text
from nnunet_dg.names import did_you_mean, foreign_path, is_fold, letters, printable
from nnunet_dg.reporting.report import write_report
from nnunet_dg.reporting.scores import IN_DOMAIN, UNSEEN, VALIDATION
from nnunet_dg.reporting.sources import Source, names_of
from nnunet_dg.reporting.view import view

ADAPTATION = "adaptation.json"  # of `nnunet-dg predict`, next to its predictions
Say = Callable[[str], None]  # receives messages for the reader of the scores


def read_sources(
    sources: Sequence[Source],
    domains: Mapping[str, str] | None = None,
    trained_on: Collection[str] = (),
    say: Say | None = None,
    validation_domain: str | None = None,
    folds: Collection[str] | None = None,
) -> pd.DataFrame:
    """Read the scores of several results into one table, described in `nnunet_dg.reporting.scores`.

    A source is either a results folder of nnU-Net, ``TRAINER__PLANS__CONFIGURATION``, or a folder that
    `nnunet-dg evaluate` has written to. Of a results folder, every validated fold is read except fold ``all``, which
    was validated on its training cases. A validation is read from its ``evaluation.json`` or, without one, from
    nnU-Net's ``summary.json``, which contains only Dice. Sources with the same name are repeated trainings if they
    share a case of a fold, and otherwise parts of the results of one training.

    Folds that were not validated, or whose validation cannot be read, are left out; ``say`` receives the reason and the
    command that fixes it.

    Args:
        sources: Results of any trainers, plans and folds.
        domains: ``{case: domain}`` for the cases of evaluated folders. For results folders, domains are read from the
            ``domains.json`` of the dataset; without one, their cases have no domain and are in-domain.
        trained_on: Domains of the training data of the evaluated folders' models.
        say: Function that receives messages for the reader of the scores; by default they go to standard error.
        validation_domain: Domain on which settings or trainers were chosen; its cases are neither in-domain nor unseen.
        folds: Folds of results folders that are read; None: all.

    Returns:
        Table of scores with additional columns ``prediction_file`` and ``reference_file``.

    Raises:
        ResultsError: A source has no scores, or lacks required information; a model was trained on the validation
            domain, or no case is from it.
        DataError: A file that all scores of a source depend on cannot be read.
    """
    reader = _Reader(domains, trained_on, say or _to_standard_error, validation_domain, folds)
    tables: list[pd.DataFrame] = []
    for name, source in zip(names_of(sources), sources, strict=True):
        trained = any(path.is_dir() for path in source.path.glob("fold_*"))
        table = reader.folds(source.path) if trained else reader.evaluated(source.path)
        found = set(zip(table["fold"], table["case"], strict=True))
        before = [t for t in tables if t["trainer"].iloc[0] == name]
        overlapping = [t["run"].iloc[0] for t in before if found & set(zip(t["fold"], t["case"], strict=True))]
        tables.append(table.assign(trainer=name, run=1 + max(overlapping, default=0)))
    _refuse_different(reader.settings)
    scores = pd.concat(tables, ignore_index=True)
    if validation_domain is not None and VALIDATION not in set(scores["setting"]):
        known = sorted(set(scores["domain"]) - {UNNAMED})
        listed = ", ".join(map(repr, known)) or "of which none is known"
        raise ResultsError(
            f"`validation_domain` must be a domain of validated cases, {listed}; got {validation_domain!r}."
            f"{did_you_mean(validation_domain, known)}"
        )
    return scores


def report(
    sources: Sequence[Source],
    output: Path,
    baseline: str | None = None,
    metric: str = "dice",
    domains: Path | None = None,
    trained_on: Collection[str] = (),
    costs: Path | None = None,
    validation_domain: str | None = None,
    choices: Path | None = None,
    folds: Collection[str] | None = None,
) -> pd.DataFrame:
    """Write a report on several results, with pictures of the worst cases if their files still exist.

    Args:
        sources: Results, see `read_sources`.
        output: Folder to write to.
        baseline: Trainer that the others are tested against, see `write_report`.
        metric: Metric of ranks, tests and figures, see `write_report`.
        domains: JSON file ``{case: domain}``, see `read_sources`.
        trained_on: Training domains of evaluated folders, see `read_sources`.
        costs: CSV file of a table of costs, which the report prints as it is.
        validation_domain: See `read_sources`.
        choices: CSV file of a table of what was chosen on the validation domain, which the report prints as it is.
        folds: See `read_sources`.

    Returns:
        The first table, with formatted numbers.

    Raises:
        DataError: See `read_sources` and `write_report`.
        SettingsError: See `write_report`.
        ExtraError: The extra "report" is not installed.
    """
    require("report", "The report")
    remarks: list[str] = []

    def say(text: str) -> None:
        remarks.append(text)
        _to_standard_error(text)

    given = None if domains is None else read_file(domains)
    scores = read_sources(sources, given, trained_on, say, validation_domain, folds)
    tables = _table("costs", costs), _table("choices", choices)
    return write_report(scores, output, baseline, metric, view, remarks, *tables)


def _table(argument: str, path: Path | None) -> pd.DataFrame | None:
    if path is None:
        return None
    text = read_text(path)
    try:
        return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"`{argument}` must be a CSV file with one row of names; {path}: {error}") from error


def _to_standard_error(text: str) -> None:
    print(f"nnunet-dg: {printable(text)}", file=sys.stderr)


def _refuse_different(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse evaluations with different settings, such as tolerances: their numbers cannot be compared."""
    for path, given in settings.items():
        first, expected = next(iter(settings.items()))
        if given != expected:
            raise ResultsError(
                f"{path} was evaluated with {given}, and {first} with {expected}. Evaluate both with the same settings."
            )


@dataclass
class _Reader:
    """Reads sources, and collects what it said and the settings of evaluations, ``{path of evaluation.json: ...}``."""

    domains: Mapping[str, str] | None
    trained_on: Collection[str]
    say: Say
    validation_domain: str | None = None
    only: Collection[str] | None = None
    settings: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def folds(self, results: Path) -> pd.DataFrame:
        """The validated folds of a results folder."""
        trained = _Trained.of(results, self.say)
        tables, problems = [], []
        if (results / "fold_all" / "validation").is_dir():
            self.say(f"{results}: fold all is left out, because it was validated on the cases it was trained on.")
        existing = trained.folds()
        if missing := sorted(set(self.only or ()) - set(existing)):
            self.say(f"{results} has no fold {', '.join(missing)}.")
        for fold in (fold for fold in existing if self.only is None or fold in self.only):
            try:
                tables.append(self._fold(trained, fold))
            except DataError as error:
                problems.append(f"{results}: fold {fold} is left out. {error}")
        if not tables:
            raise ResultsError("\n".join(problems) or self._without_folds(results, existing))
        for problem in problems:
            self.say(problem)
        return pd.concat(tables, ignore_index=True)

    def evaluated(self, folder: Path) -> pd.DataFrame:
        """The scores of an evaluated folder of predictions."""
        if folder.resolve().parent.name.startswith("fold_"):
            raise ResultsError(f"{folder} is one fold's validation. Give the results folder, {folder.parent.parent}.")
        record = read_record(folder, folder / "dataset.json")
        if self.domains is None or not self.trained_on:
            raise ResultsError(
                f"{folder}: give the domain of each case (`domains`) and the domains that the model was trained on "
                f"(`trained_on`). Without them, in-domain and unseen cases cannot be told apart."
            )
        self._note_unknown(folder, self.domains)
        table = _with_domains(record.table.assign(fold="test"), self.domains, "`domains`")
        self.settings |= record.settings
        return self._with_settings(table, self.trained_on)

    def _with_settings(self, table: pd.DataFrame, trained_on: Collection[str]) -> pd.DataFrame:
        """Add the setting of each case: in-domain if the model was trained on its domain, validation, or unseen."""
        if self.validation_domain in trained_on:
            raise ResultsError(
                f"The model was trained on the validation domain {self.validation_domain!r}. Choose on a domain that "
                f"no model was trained on."
            )
        settings = dict.fromkeys(trained_on, IN_DOMAIN) | {self.validation_domain: VALIDATION}
        return table.assign(setting=[settings.get(domain, UNSEEN) for domain in table["domain"]])

    def _note_unknown(self, folder: Path, domains: Mapping[str, str]) -> None:
        known = sorted(set(domains.values()))
        for name in sorted(set(self.trained_on) - set(known)):
            same = [k for k in known if letters(k) == letters(name)]
            if same and letters(name):
                raise ResultsError(f"`trained_on` names {name!r}; the domain is called {same[0]!r}.")
            close = did_you_mean(name, known)
            self.say(f"{folder}: no case is from the domain {name!r}, which the model was trained on.{close}")

    def _without_folds(self, results: Path, existing: Sequence[str]) -> str:
        if existing:
            return f"{results} has the folds {', '.join(existing)}, but none of {', '.join(self.only or ())}. Name one."
        return f"{results} has no fold except fold all. Train a numbered fold."

    def _fold(self, trained: _Trained, fold: str) -> pd.DataFrame:
        """The scores of one fold.

        Raises:
            DataError: The fold was not validated, or its scores cannot be read; the message says what to do.
        """
        folder, command = trained.validation(fold), trained.command(fold, "--val")
        record = read_record(folder, trained.results / "dataset.json", command)
        evaluated, summarized = set(record.table["case"]), summary_cases(folder, trained.ending)
        train, val = trained.split(fold, evaluated | summarized, complete=bool(summarized))
        if missing := sorted(val - evaluated):
            self._note_missing(trained, fold, missing, len(val))
        table = trained.with_truths(record.table).assign(fold=fold)
        self.settings |= record.settings
        if trained.domains is None:
            return table.assign(domain=UNNAMED, setting=IN_DOMAIN)
        table = _with_domains(table, trained.domains, str(trained.domains_file))
        return self._with_settings(table, trained.domains_of(train))

    def _note_missing(self, trained: _Trained, fold: str, missing: Sequence[str], number: int) -> None:
        """Say, once, that validation cases have no score."""
        text = (
            f"{trained.results}: {len(missing)} of {number} validation cases of fold {fold} were not evaluated, the "
            f"first is {missing[0]!r}."
        )
        adaptation = trained.validation(fold) / ADAPTATION
        if not adaptation.is_file():
            text += f" {trained.command(fold, '--val')} validates all of them."
        else:
            record = read_json(adaptation, formats.Adaptation, "Predict again with nnunet-dg predict.")
            if (validation := record["validation"]) and set(missing) <= set(validation["cases"]):
                text = f"{record['method']} chose a number on in-domain validation cases, which its rows leave out."
        if text not in self.said:
            self.said.add(text)
            self.say(text)


@dataclass(frozen=True)
class _Trained:
    """A results folder, with the splits and domains of its preprocessed dataset."""

    results: Path
    dataset_name: str
    ending: str
    splits_file: Path
    splits: formats.Splits
    domains_file: Path
    domains: Mapping[str, str] | None

    @classmethod
    def of(cls, results: Path, say: Say) -> _Trained:
        """Read the files that all folds depend on."""
        name = read_json(results / "plans.json", formats.Plans)["dataset_name"]
        if not nnUNet_preprocessed or Path(name).name != name:
            raise ResultsError(
                f"The training cases of {results} are read from the folder {name!r} in nnUNet_preprocessed. Set "
                f"nnUNet_preprocessed as for the training."
            )
        preprocessed = Path(nnUNet_preprocessed, name)
        splits = preprocessed / "splits_final.json"
        if not splits.is_file():
            raise ResultsError(
                f"The training cases of {results} are read from {splits}, which does not exist. Set "
                f"nnUNet_preprocessed as for the training."
            )
        ending = read_json(results / "dataset.json", formats.Dataset)["file_ending"]
        domains_file = locate(Path(nnUNet_raw, name) if nnUNet_raw else None, preprocessed)
        domains = read_file(domains_file) if domains_file.exists() or domains_file.is_symlink() else None
        if domains is None:
            say(f"{name} has no {DOMAINS}: all its cases count as in-domain.")
        content = read_json(splits, formats.Splits, "Restore the splits of that training.")
        return cls(results, name, ending, splits, content, domains_file, domains)

    def with_truths(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with truths of the preprocessed dataset in place of those that do not exist on this machine."""
        truths = self.splits_file.parent / "gt_segmentations"
        local = [truths / foreign_path(file).name for file in table["reference_file"]]
        files = [
            str(path) if not Path(file).is_file() and path.is_file() else file
            for path, file in zip(local, table["reference_file"], strict=True)
        ]
        return table.assign(reference_file=files)

    def domains_of(self, train: Collection[str]) -> set[str]:
        """The domains of training cases."""
        domains = self.domains or {}
        if unknown := sorted(set(train) - set(domains)):
            raise ResultsError(f"{self.domains_file} has no domain for the training case {unknown[0]!r}. Add it.")
        return {domains[case] for case in train}

    def folds(self) -> list[str]:
        """The names of all folds except ``all``, with or without a validation, in order."""
        folders = [path.name for path in self.results.iterdir() if is_fold(path.name) and path.is_dir()]
        names = {name.removeprefix("fold_") for name in folders}
        return sorted(names - {"all"}, key=lambda fold: (fold.zfill(9), fold))

    def command(self, fold: str, option: str) -> str:
        """nnU-Net's training command for a fold of this training, with an additional option."""
        parts = self.results.resolve().name.split("__")
        trainer, plans, configuration = parts if len(parts) == 3 else ("TRAINER", "PLANS", "CONFIGURATION")
        words = ["nnUNetv2_train", number_of(self.dataset_name), configuration, fold, "-tr", trainer, "-p", plans]
        return shlex.join([*words, option])

    def validation(self, fold: str) -> Path:
        """The folder of a fold's validation.

        Raises:
            ResultsError: The fold was not trained, or not validated.
        """
        folder = self.results / f"fold_{fold}"
        validation = folder / "validation"
        if (validation / EVALUATION).is_file() or (validation / SUMMARY).is_file():
            return validation
        if (folder / "checkpoint_final.pth").is_file() or any(validation.glob(f"*{self.ending}")):
            reason = "its validation is incomplete" if validation.is_dir() else "it was trained but not validated"
            raise ResultsError(f"It has no {SUMMARY}: {reason}. {self.command(fold, '--val')} validates it.")
        if any(folder.glob("checkpoint_*.pth")):
            raise ResultsError(f"Its training is not finished. {self.command(fold, '--c')} resumes it.")
        raise ResultsError(f"{folder} contains neither a checkpoint nor a validation.")

    def split(self, fold: str, cases: set[str], complete: bool) -> tuple[set[str], set[str]]:
        """The training and the validation cases of a fold.

        Args:
            fold: Name of the fold.
            cases: Validated cases.
            complete: Whether the fold must have exactly these cases; if False, it may have more.

        Raises:
            ResultsError: The splits are not those of the training, or a case is in both parts.
        """
        known = self.splits[int(fold)] if fold.isdecimal() and int(fold) < len(self.splits) else None
        val = set(known["val"]) if known else set()
        if known is None or not cases <= val or (complete and cases != val):
            raise ResultsError(
                f"Fold {fold} was not validated on the cases in {self.splits_file}, so the domains that it was trained "
                f"on are unknown. Restore the splits of that training."
            )
        train = set(known["train"])
        if both := sorted(train & val):
            raise ResultsError(
                f"Fold {fold} of {self.splits_file} leaks: case {both[0]!r}"
                f"{f' and {len(both) - 1} more are' if len(both) > 1 else ' is'} in training and in validation. Make "
                f"new splits, and train again."
            )
        return train, val


def _with_domains(table: pd.DataFrame, domain_of: Mapping[str, str], source: str) -> pd.DataFrame:
    if unknown := sorted(set(table["case"]) - set(domain_of)):
        raise ResultsError(f"{source} has no domain for case {unknown[0]!r}. Add it.")
    return table.assign(domain=table["case"].map(domain_of))
