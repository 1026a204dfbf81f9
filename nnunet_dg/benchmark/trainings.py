"""The trainings of a plan: one for each dataset, configuration, plans, row of the comparison and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

from nnunet_dg.benchmark.plan import SCHEMES, Dataset, Plan, Trainer, check_choice
from nnunet_dg.datasets.domains import FILE, locate, read_file
from nnunet_dg.datasets.split_dataset import dataset_name
from nnunet_dg.datasets.splits import check_validation, domains_of_folds
from nnunet_dg.errors import DataError, HostError, SettingsError, UserError, about
from nnunet_dg.files import read_json
from nnunet_dg.formats import Plans as PlansFile
from nnunet_dg.formats import Splits
from nnunet_dg.host import planner_class, trainer_class
from nnunet_dg.names import did_you_mean
from nnunet_dg.robustness.stress import KINDS
from nnunet_dg.training.plans import resolve
from nnunet_dg.training.trainer import MethodsTrainer

PLAIN, SEEDED = "nnUNetTrainer", "nnUNetTrainerERM"
CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres")  # what nnU-Net's planners make, without the cascade


@dataclass(frozen=True)
class Folds:
    """A dataset with its folds.

    Attributes:
        name: Full name, such as Dataset501_Heart.
        protocol: One of `SCHEMES`.
        groups: Path of the groups that splits keep together, or None.
        in_domain: Fraction of the groups of training domains that are validated on, in [0, 1).
        validation_domain: Domain on which rows are chosen, or None.
        numbers: Numbers of the folds that are trained.
    """

    name: str
    protocol: str
    groups: Path | None
    in_domain: float
    validation_domain: str | None
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Training:
    """The trainings of all folds that share one results folder of nnU-Net.

    Attributes:
        folds: Dataset and folds.
        configuration: Configuration of the plans.
        plans: Name of the plans that this training's own plans are derived from.
        row: Name of the row in the comparison.
        trainer: Name of the trainer.
        seed: Seed.
        section: The own plans' section ``nnunet_dg``, beyond that of ``plans``.
    """

    folds: Folds
    configuration: str
    plans: str
    row: str
    trainer: str
    seed: int
    section: Mapping[str, Any]

    @property
    def comparison(self) -> str:
        """Name of the comparison, which is the folder of its report."""
        return "__".join((self.folds.name, self.configuration, self.plans))

    @property
    def name(self) -> str:
        """Name of the training within the benchmark."""
        return f"{self.comparison}__{self.row}__seed{self.seed}"

    @property
    def own_plans(self) -> str:
        """Name of this training's plans, which gives each row, length and seed a results folder of its own."""
        length = self.section["training"]
        parts = [f"{length[key]}{key}" for key in ("epochs", "steps") if key in length]
        return "_".join([self.plans, self.row, *parts, f"seed{self.seed}"])

    @property
    def results(self) -> Path:
        """nnU-Net's results folder."""
        name = f"{self.trainer}__{self.own_plans}__{self.configuration}"
        return Path(nnUNet_results, self.folds.name, name)

    @property
    def preprocessed(self) -> Path:
        """The preprocessed dataset folder."""
        return Path(nnUNet_preprocessed, self.folds.name)


def trainings_of(plan: Plan, folder: Path) -> list[Training]:
    """All trainings of a plan, after checking everything that can be checked before the first job.

    Args:
        plan: Plan.
        folder: Folder that the paths in the plan are relative to.

    Raises:
        SettingsError: A trainer, setting, stress kind or configuration is not accepted.
        DataError: The folds of a dataset cannot be determined.
        HostError: nnU-Net's folders are not set, or there is no such dataset.
    """
    for name, value in {"nnUNet_raw": nnUNet_raw, "nnUNet_results": nnUNet_results}.items():
        if not value:
            raise HostError(f"{name} is not set. Set it as for nnU-Net's own commands.")
    for kind in plan["stress"]:
        check_choice("stress", kind, KINDS)
    for name in plan["configurations"]:
        if "cascade" in name:
            raise SettingsError(f"configurations: a benchmark cannot train a cascade; got {name!r}. Remove it.")
    rows = {row: _trainer_of(row, value) for row, value in plan["trainers"].items()}
    datasets = [_folds_of(dataset, folder) for dataset in plan["datasets"]]
    if twice := [d.name for d in datasets if [other.name for other in datasets].count(d.name) > 1]:
        raise SettingsError(f"datasets lists {twice[0]} twice. Keep one.")
    for name, planner in plan["plans"].items():
        _check_plans(name, planner, plan["configurations"], [dataset.name for dataset in datasets])
    trainings = list(_product(plan, datasets, rows))
    _check_folders(trainings)
    return trainings


def _check_plans(name: str, planner: str | None, configurations: Sequence[str], datasets: Sequence[str]) -> None:
    """Refuse a planner that does not exist, plans that nobody makes, and configurations that plans do not have."""
    try:
        made_by = planner_class(planner) if planner is not None else None
    except HostError as error:
        raise SettingsError(f"plans.{name}: {error}") from error
    for dataset in datasets:
        file = Path(nnUNet_preprocessed, dataset, f"{name}.json")
        if file.is_file():
            accepted = list(read_json(file, PlansFile).get("configurations", {}))
        elif made_by is None:
            close = did_you_mean(name, [path.stem for path in file.parent.glob("*Plans*.json")])
            raise DataError(
                f"plans: there are no plans {file}.{close} Make them, or name a planner: {{{name}: PLANNER}}."
            )
        elif made_by.__module__.partition(".")[0] in ("nnunetv2", "nnunet_dg"):
            accepted = list(CONFIGURATIONS)
        else:  # a planner of somebody else may make other configurations
            continue
        for configuration in configurations:
            check_choice(f"configurations ({dataset}, {name})", configuration, accepted)


def _check_folders(trainings: Sequence[Training]) -> None:
    """Refuse two trainings with one results folder, such as row ``a_b`` of plans ``x`` and row ``b`` of ``x_a``."""
    owners: dict[Path, Training] = {}
    for training in trainings:
        other = owners.setdefault(training.results, training)
        if other is not training:
            raise SettingsError(
                f"trainers: the rows {other.row!r} (plans {other.plans}) and {training.row!r} (plans {training.plans}) "
                f"would share the results folder {training.results.name}. Give one of the rows another name."
            )


def _product(plan: Plan, datasets: list[Folds], rows: Mapping[str, str]) -> Iterator[Training]:
    length = {key: value for key, value in (("epochs", plan["epochs"]), ("steps", plan["steps"])) if value is not None}
    for dataset, configuration, plans in product(datasets, plan["configurations"], plan["plans"]):
        for (row, trainer), seed in product(rows.items(), plan["seeds"]):
            section = {**plan["trainers"][row].get("settings", {}), "training": {"seed": seed, **length}}
            yield Training(dataset, configuration, plans, row, trainer, seed, section)


def _trainer_of(row: str, value: Trainer) -> str:
    """The name of a row's trainer, after checking that it exists and accepts its settings."""
    name = value.get("trainer", row)
    name = SEEDED if name == PLAIN else name
    try:
        trainer = trainer_class(name)
    except HostError as error:
        raise SettingsError(f"trainers.{row}: {error}") from error
    if not issubclass(trainer, MethodsTrainer):
        raise SettingsError(
            f"trainers.{row}: {name} takes neither seed nor epochs. Accepted are {PLAIN} and trainers of nnunet-dg. To "
            f"compare another trainer, declare `class Mine(MethodsTrainer, {name})` as in docs/how-to/own-trainer.md."
        )
    settings = value.get("settings", {})
    if unused := sorted(set(settings) - set(trainer.keys())):
        accepted = ", ".join(trainer.keys()) or "none"
        raise SettingsError(f"trainers.{row}.settings: {name} does not use {unused[0]!r}; its methods: {accepted}.")
    for method in trainer.methods:
        try:
            resolve({"nnunet_dg": dict(settings)}, method, trainer.keys())
        except UserError as error:
            raise SettingsError(f"trainers.{row}.settings: {error}") from error
    return name


def _folds_of(dataset: Dataset, folder: Path) -> Folds:
    name = _name_of(str(dataset["dataset"]))
    protocol = dataset.get("protocol", SCHEMES[0])
    groups = folder / dataset["groups"] if "groups" in dataset else None
    if unused := [key for key in ("groups", "in_domain") if key in dataset and protocol == "existing"]:
        raise SettingsError(f"datasets: {name} has {unused[0]!r}, which existing folds do not use. Remove it.")
    if groups is not None:
        read_file(groups, "group")
    domain = dataset.get("validation_domain")
    with about(f"datasets: {name}"):
        known = _number_of_folds(name, protocol, domain)
    numbers = tuple(dataset.get("folds", range(known)))
    if unknown := [number for number in numbers if number >= known]:
        raise SettingsError(f"datasets: {name} has the folds 0 to {known - 1}; got {unknown[0]}.")
    if protocol == "existing" and domain is not None:
        with about(f"datasets: {name}"):
            _check_existing(name, numbers, domain)
    return Folds(name, protocol, groups, dataset.get("in_domain", 0.0), domain, numbers)


def _name_of(dataset: str) -> str:
    """The full name of a dataset that is in nnUNet_raw or nnUNet_preprocessed."""
    try:
        name = dataset_name(dataset)
    except HostError as error:
        raise SettingsError(f"datasets: {error}") from error
    known = [path.name for folder in (nnUNet_raw, nnUNet_preprocessed) for path in Path(folder).glob("Dataset*")]
    if name not in known:
        raise SettingsError(
            f"datasets: there is no {name} in {nnUNet_raw} or {nnUNet_preprocessed}.{did_you_mean(name, known)}"
        )
    return name


def _number_of_folds(name: str, protocol: str, validation_domain: str | None) -> int:
    if protocol == "existing":
        return len(_existing(name))
    return len(domains_of_folds(_domains(name, f"The protocol {protocol}"), validation_domain))


def _check_existing(name: str, numbers: Sequence[int], validation_domain: str) -> None:
    """Refuse folds that train on the validation domain, or in which it or another unseen domain is missing."""
    domains, splits = _domains(name, "A validation domain"), _existing(name)
    domains_of_folds(domains, validation_domain)
    for number in numbers:
        train, val = splits[number]["train"], splits[number]["val"]
        if unknown := sorted({*train, *val} - set(domains)):
            raise DataError(f"{FILE} of {name} has no domain for case {unknown[0]!r}. Add it.")
        check_validation(number, train, val, domains, validation_domain)


def _existing(name: str) -> Splits:
    path = Path(nnUNet_preprocessed, name, "splits_final.json")
    if not path.is_file():
        raise DataError(f"The protocol of {name} is existing folds, but there is no {path}. Make them first.")
    return read_json(path, Splits)


def _domains(name: str, what: str) -> dict[str, str]:
    path = locate(Path(nnUNet_raw, name), Path(nnUNet_preprocessed, name))
    if not path.is_file():
        raise DataError(f"{what} needs the domain of each case of {name} in {path}, which is missing.")
    return read_file(path)
