"""Splits by domain, in the form of nnU-Net's ``splits_final.json``: ``[{"train": [case, ...], "val": [...]}, ...]``.

A group is what must not be split: a patient with several scans. Every case is a group of its own unless told otherwise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold


@dataclass(frozen=True)
class Fold:
    """One fold: its training and validation cases, sorted, and in words what it holds out."""

    train: list[str]
    val: list[str]
    description: str


def leave_one_domain_out(domains: Mapping[str, str], groups: Mapping[str, str] | None = None) -> list[Fold]:
    """Fold k trains on all domains but the k-th, in alphabetical order, and validates on that one.

    Args:
        domains: ``{case: domain}``.
        groups: ``{case: group}``.

    Raises:
        ValueError: fewer than two domains, or a group in several of them.
    """
    folds = []
    for held_out in _names(domains):
        val = [case for case in domains if domains[case] == held_out]
        folds.append(_fold(domains, val, f"validates on {held_out}, which no training case is from"))
    check(folds, groups)
    return folds


def single_source(domains: Mapping[str, str], groups: Mapping[str, str] | None = None) -> list[Fold]:
    """Fold k trains on the k-th domain alone, in alphabetical order, and validates on all others. As above."""
    folds = []
    for source in _names(domains):
        val = [case for case in domains if domains[case] != source]
        folds.append(_fold(domains, val, f"trains on {source} alone"))
    check(folds, groups)
    return folds


def few_shot(
    domains: Mapping[str, str], num_cases: int, folds: int = 5, seed: int = 0, groups: Mapping[str, str] | None = None
) -> list[Fold]:
    """Each fold trains on a few random cases, and validates on all others but those of the same groups.

    Args:
        domains: ``{case: domain}``.
        num_cases: how many training cases.
        folds: how many draws.
        seed: of the draws; the same seed gives the same splits.
        groups: ``{case: group}``.

    Raises:
        ValueError: there are not so many cases, or none would be left to validate.
    """
    cases, groups = sorted(domains), groups or {case: case for case in domains}
    if not 1 <= num_cases < len(cases):
        raise ValueError(f"few-shot needs between 1 and {len(cases) - 1} training cases; got {num_cases}.")
    rng, made = np.random.default_rng(seed), []
    for _ in range(folds):
        train = sorted(rng.choice(cases, num_cases, replace=False).tolist())
        taken = {groups[case] for case in train}
        val = [case for case in cases if groups[case] not in taken]
        if not val:
            raise ValueError(f"{num_cases} training cases are from every group: none is left to validate on.")
        trained_on = ", ".join(f"{count} of {domain}" for domain, count in sorted(_count(domains, train).items()))
        made.append(Fold(train, val, f"trains on {num_cases} cases: {trained_on}"))
    check(made, groups)
    return made


def grouped(domains: Mapping[str, str], groups: Mapping[str, str], folds: int = 5, seed: int = 0) -> list[Fold]:
    """Ordinary cross-validation of all domains together, in which no group is split.

    Args:
        domains: ``{case: domain}``.
        groups: ``{case: group}``.
        folds: how many.
        seed: of the shuffling.

    Raises:
        ValueError: fewer groups than folds.
    """
    cases = sorted(domains)
    of_case = [groups[case] for case in cases]
    if not 2 <= folds <= len(set(of_case)):
        raise ValueError(f"grouped needs between 2 and {len(set(of_case))} folds, one per group at most; got {folds}.")
    made = []
    for _, held_out in GroupKFold(folds, shuffle=True, random_state=seed).split(cases, groups=of_case):
        val = [cases[i] for i in held_out]
        validated = ", ".join(f"{count} of {domain}" for domain, count in sorted(_count(domains, val).items()))
        made.append(_fold(domains, val, f"validates on {len({groups[c] for c in val})} groups: {validated}"))
    check(made, groups)
    return made


def check(folds: list[Fold], groups: Mapping[str, str] | None = None) -> None:
    """Refuse folds in which training and validation share a case or a group, or one of the two is empty.

    Raises:
        ValueError: by name of the case or group.
    """
    for number, fold in enumerate(folds):
        if not fold.train or not fold.val:
            raise ValueError(f"Fold {number} has no {'validation' if fold.train else 'training'} case.")
        if both := sorted(set(fold.train) & set(fold.val)):
            raise ValueError(f"Fold {number} leaks: case {both[0]!r} is trained and validated on.")
        if groups is None:
            continue
        if both := sorted({groups[case] for case in fold.train} & {groups[case] for case in fold.val}):
            raise ValueError(
                f"Fold {number} leaks: group {both[0]!r} is trained and validated on. Its cases are from several "
                f"domains: give them one, or use grouped splits."
            )


def write(folds: list[Fold], path: Path, force: bool = False) -> None:
    """Write nnU-Net's ``splits_final.json``.

    Raises:
        FileExistsError: there is one, and ``force`` was not given.
    """
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already. Trainings that used it would change their folds: --force.")
    path.write_text(json.dumps([{"train": fold.train, "val": fold.val} for fold in folds], indent=4) + "\n")


def _names(domains: Mapping[str, str]) -> list[str]:
    names = sorted(set(domains.values()))
    if len(names) < 2:
        raise ValueError(
            f"There is one domain, {names[0]!r}: splits by domain need two. Say which case is from where in "
            f"domains.json."
        )
    return names


def _fold(domains: Mapping[str, str], val: list[str], description: str) -> Fold:
    return Fold(sorted(set(domains) - set(val)), sorted(val), description)


def _count(domains: Mapping[str, str], cases: list[str]) -> Counter[str]:
    return Counter(domains[case] for case in cases)
