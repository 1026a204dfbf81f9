"""Reading a benchmark's plan: a YAML file, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

from nnunet_dg.errors import DataError, SettingsError, about
from nnunet_dg.extras import require
from nnunet_dg.files import read_text, validate
from nnunet_dg.formats import Name, Sections
from nnunet_dg.names import did_you_mean

_STRICT = ConfigDict(strict=True)
SCHEMES = ("leave-one-domain-out", "single-source", "existing")
METRICS = ("dice", "hd95_mm", "assd_mm", "nsd")
DEVICES = ("cpu", "cuda", "mps")
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]|_(?!_))*")  # nnU-Net separates the parts of a results folder by "__"
NAMES = "letters, digits, '.', '-' and single '_', starting with a letter or digit"

Whole = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Trainer(TypedDict):
    """A row of the comparison: a trainer, and settings that take precedence over its own."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    trainer: NotRequired[Name]
    settings: NotRequired[Sections]


class Dataset(TypedDict):
    """A dataset, and which of its cases are trained on."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    dataset: int | Name
    protocol: NotRequired[str]
    groups: NotRequired[Name]
    in_domain: NotRequired[Annotated[float, Field(ge=0, lt=1)]]
    validation_domain: NotRequired[Name]
    folds: NotRequired[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]]


class Plan(TypedDict):
    """The content of a plan file. Keys that are left out have the values of `DEFAULTS`."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    datasets: Annotated[list[Dataset], Field(min_length=1)]
    trainers: Annotated[dict[Name, Trainer], Field(min_length=1)]
    configurations: Annotated[list[Name], Field(min_length=1)]
    plans: Annotated[dict[Name, str | None], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    epochs: Whole | None
    steps: Whole | None
    choose: dict[Name, Annotated[list[Name], Field(min_length=2)]]
    adaptation: dict[Name, dict[str, Any]]
    stable: str | None
    stress: list[str]
    metrics: Annotated[list[str], Field(min_length=1)]
    baseline: str | None
    device: str


DEFAULTS: dict[str, Any] = {
    "configurations": ["3d_fullres"],
    "plans": {"nnUNetPlans": "ExperimentPlanner"},
    "seeds": [0],
    "epochs": None,
    "steps": None,
    "choose": {},
    "adaptation": {},
    "stable": None,
    "stress": [],
    "metrics": ["dice"],
    "baseline": None,
    "device": "cuda",
}


def read_plan(path: Path) -> Plan:
    """Read a plan, and fill in the defaults. What is installed and which datasets exist is not checked here.

    Raises:
        DataError: The file cannot be read, is not YAML, or a value has another type than expected.
        SettingsError: A key or a value is unknown. The message names the accepted ones.
        ExtraError: The extra "benchmark" is not installed.
    """
    require("benchmark", "A benchmark")
    text = read_text(path)
    with about(path):
        content = parse_yaml(text)
        if not isinstance(content, dict):
            raise DataError(f"a plan must have keys such as datasets and trainers; got {content!r}.")
        _check_keys(content, ("datasets", "trainers", *DEFAULTS), "")
        plan = validate(DEFAULTS | _in_full(content), Plan)
        _check_values(plan)
    return plan


def parse_yaml(text: str) -> Any:
    """YAML as Python values.

    Raises:
        DataError: The text is not YAML, or repeats a key in a mapping.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader that refuses repeated keys, of which YAML's own would use the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if repeated := [key for key in keys if keys.count(key) > 1]:
                raise DataError(f"The key {repeated[0]!r} appears more than once{_line(node)}. Keep one.")
            return super().construct_mapping(node, deep)

    # as in YAML 1.2: YAML 1.1, which PyYAML reads, takes 1e-3 for text
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
    )
    try:
        return yaml.load(text, Loader)  # noqa: S506, a safe loader
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "cannot be read"
        raise DataError(f"The plan is not valid YAML: {problem}{_line(error)}. Correct the file.") from error
    except TypeError as error:  # a key that is a list or a mapping
        raise DataError(f"The plan has a key that is not text: {error}.") from error


def _line(place: Any) -> str:
    mark = getattr(place, "problem_mark", None) or getattr(place, "start_mark", None)
    return f" (line {mark.line + 1})" if mark else ""


def _in_full(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with short forms written out: a dataset's number, a trainer's name, a list of plans."""
    result = dict(content)
    if isinstance(datasets := result.get("datasets"), list):
        result["datasets"] = [{"dataset": d} if isinstance(d, int | str) else d for d in datasets]
        for number, dataset in enumerate(result["datasets"]):
            _check_keys(dataset, Dataset.__annotations__, f"datasets[{number}]")
    for key in ("trainers", "plans", "adaptation"):
        names = result.get(key)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            check_unique(key, names)
            result[key] = dict.fromkeys(names)
    for key in ("trainers", "adaptation"):
        if isinstance(result.get(key), dict):
            result[key] = {name: {} if value is None else value for name, value in result[key].items()}
    if isinstance(trainers := result.get("trainers"), dict):
        for name, value in trainers.items():
            _check_keys(value, Trainer.__annotations__, f"trainers.{name}")
            _check_sections(value, f"trainers.{name}.settings")
    return result


def _check_sections(trainer: Any, place: str) -> None:
    settings = trainer.get("settings") if isinstance(trainer, dict) else None
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if not isinstance(value, dict):
            raise SettingsError(
                f"{place} are grouped by method, such as {{dropgen: {{p: 0.25}}}}; got {{{key}: {value}}}. Write "
                f"{{METHOD: {{{key}: {value}}}}}."
            )


def _check_keys(content: Any, accepted: Iterable[str], place: str) -> None:
    if not isinstance(content, dict):
        return  # validation says what is expected
    names = list(accepted)
    for key in content:
        if key not in names:
            where = f" in {place}" if place else ""
            raise SettingsError(f"Unknown key {key!r}{where}.{did_you_mean(key, names)} Accepted are {_list(names)}.")


def _check_values(plan: Plan) -> None:
    for number, dataset in enumerate(plan["datasets"]):
        check_choice(f"datasets[{number}].protocol", dataset.get("protocol", SCHEMES[0]), SCHEMES)
        check_unique(f"datasets[{number}].folds", dataset.get("folds", []))
    for name in plan["metrics"]:
        check_choice("metrics", name, METRICS)
    check_choice("device", plan["device"], DEVICES)
    for key, row in {"baseline": plan["baseline"], "stable": plan["stable"]}.items():
        if row is not None:
            check_choice(key, row, plan["trainers"])
    for key in ("trainers", "plans", "choose"):
        for name in cast("dict[str, dict[str, Any]]", plan)[key]:
            if not NAME.fullmatch(name):
                raise SettingsError(f"{key}: names must be {NAMES}; got {name!r}.")
    for key in ("configurations", "seeds", "metrics", "stress"):
        check_unique(key, cast("dict[str, list[Any]]", plan)[key])
    _check_chosen(plan)


def _check_chosen(plan: Plan) -> None:
    for row, names in plan["choose"].items():
        if row in plan["trainers"]:
            raise SettingsError(f"choose: {row!r} is a row of trainers. Give the chosen row another name.")
        for name in names:
            check_choice(f"choose.{row}", name, plan["trainers"])
        check_unique(f"choose.{row}", names)
    for number, dataset in enumerate(plan["datasets"]):
        if plan["choose"] and "validation_domain" not in dataset:
            raise SettingsError(
                f"choose: rows are chosen on a validation domain, which datasets[{number}] does not name. Give it "
                f"validation_domain, one of its domains that is neither trained on nor reported."
            )


def check_choice(place: str, value: str, accepted: Iterable[str]) -> None:
    """Raise a SettingsError that lists the accepted values, unless the value is one of them."""
    names = list(accepted)
    if value not in names:
        raise SettingsError(f"{place} must be one of {_list(names)}; got {value!r}.{did_you_mean(value, names)}")


def check_unique(place: str, values: list[Any]) -> None:
    """Raise a SettingsError if a value is listed twice."""
    if repeated := [value for value in values if values.count(value) > 1]:
        raise SettingsError(f"{place} lists {repeated[0]!r} twice. Keep one.")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
