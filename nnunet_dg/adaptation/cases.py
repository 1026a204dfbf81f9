"""The images to predict, the validation set, and the refusal to choose anything on the target domain."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunet_dg.datasets.domains import locate, read_file
from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.names import letters
from nnunet_dg.robustness.trained_model import Case, TrainedModel

Images = dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class Validation:
    """Labeled cases on which a method's numbers are chosen.

    Attributes:
        images, truths: Folders of images and their segmentations in nnU-Net's format; by default, the validation cases
            of the unstable model's fold.
        domain: Name of their domain; by default, that in ``domains.json``.
        target: Name of the domain of the images to predict; by default, that in ``domains.json``.
        allow_target: Whether both may be of the same domain.
    """

    images: Path | None = None
    truths: Path | None = None
    domain: str | None = None
    target: str | None = None
    allow_target: bool = False


def input_images(folder: Path, ending: str) -> Images:
    """The image files of each case in a folder in nnU-Net's format, ``CASE_0000.nii.gz``, sorted.

    Raises:
        DataError: There is no such folder, it has no image, or a channel is missing.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(rf"(.+)_([0-9]{{4}}){re.escape(ending)}", path.name)
        if match and not path.name.startswith("."):
            found.setdefault(match[1], {})[int(match[2])] = path
    if not found:
        raise DataError(f"{folder} has no images. Images of the model's dataset are named CASE_0000{ending}.")
    channels = max(len(files) for files in found.values())
    for case, files in found.items():
        if sorted(files) != list(range(channels)):
            raise DataError(
                f"{case} has {len(files)} of {channels} channels in {folder}. They must be named {case}_0000{ending}, "
                f"and so on."
            )
    return {case: tuple(files[channel] for channel in sorted(files)) for case, files in found.items()}


def validation_cases(model: TrainedModel, wanted: Validation, targets: Images) -> tuple[list[Case], dict[str, Any]]:
    """The validation cases, and what the record says about them.

    Args:
        model: Unstable model.
        wanted: Validation set.
        targets: Images to predict.

    Raises:
        DataError: There are no such cases, or they are of the target domain.
        SettingsError: A domain is not named.
    """
    cases = model.cases(wanted.images, wanted.truths)
    known = _known_domains(model)
    names = [case.name for case in cases]
    domains = _domains(names, wanted.domain, known, "validation_domain", "validation cases")
    target = _domains(list(targets), wanted.target, known, "target_domain", "images to predict")
    if not wanted.allow_target:
        _refuse_target(domains, target)
        _refuse_same_images({case.name: case.images for case in cases}, targets)
    source = str(wanted.images) if wanted.images else f"fold {', '.join(model.folds)} of {model.folder}"
    return cases, {
        "source": source, "domains": domains, "target_domains": target, "target_allowed": wanted.allow_target,
        "cases": names,
    }  # fmt: skip


def _refuse_target(domains: Sequence[str], target: Sequence[str]) -> None:
    if same := sorted(set(domains) & set(target)):
        raise SettingsError(
            f"The validation cases and the images to predict share the domain {same[0]!r}. Choosing numbers on the "
            f"target domain is not generalization to it. Name another validation set, or set `allow_target`."
        )


def _refuse_same_images(validation: Mapping[str, Sequence[Path]], targets: Mapping[str, Sequence[Path]]) -> None:
    sizes = {os.path.getsize(files[0]) for files in targets.values()}
    candidates = {name: files for name, files in validation.items() if os.path.getsize(files[0]) in sizes}
    if not candidates:
        return
    hashes = {pooch.file_hash(str(files[0])): name for name, files in targets.items()}
    for name, files in candidates.items():
        if case := hashes.get(pooch.file_hash(str(files[0]))):
            raise DataError(
                f"The validation case {name} is the image {case} that is to be predicted. Name another validation set, "
                f"or set `allow_target`."
            )


def _known_domains(model: TrainedModel) -> dict[str, str]:
    """The content of the dataset's ``domains.json``, if it is on this machine."""
    dataset = model.predictor.plans_manager.dataset_name
    raw = Path(nnUNet_raw, dataset) if nnUNet_raw else None
    path = locate(raw, Path(nnUNet_preprocessed or "", dataset))
    return read_file(path) if path.is_file() else {}


def _domains(cases: Sequence[str], given: str | None, known: Mapping[str, str], argument: str, what: str) -> list[str]:
    if given is not None:
        if not given.strip():
            raise SettingsError(f"`{argument}` must be a name; got {given!r}.")
        _check_name(given, cases, known, argument)
        return [given]
    if missing := [case for case in cases if case not in known]:
        raise SettingsError(
            f"The domain of the {what} is not known: domains.json of the dataset does not name {missing[0]!r}. Name "
            f"it: `{argument}`."
        )
    return sorted({known[case] for case in cases})


def _check_name(given: str, cases: Sequence[str], known: Mapping[str, str], argument: str) -> None:
    """Refuse another domain than that of ``domains.json``, and another spelling of one that it names."""
    for case in cases:
        if known.get(case, given) != given:
            raise SettingsError(
                f"`{argument}` is {given!r}, but domains.json says that {case} is from {known[case]!r}. Correct one of "
                f"them, or leave `{argument}` out."
            )
    same = [name for name in sorted(set(known.values())) if letters(name) == letters(given) != ""]
    if same and given not in same:
        raise SettingsError(f"`{argument}` names {given!r}; in domains.json the domain is called {same[0]!r}.")
