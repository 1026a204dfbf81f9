"""Splits by domain, in the format of nnU-Net's ``splits_final.json``: ``[{"train": [case, ...], "val": [...]}, ...]``.

A group is a set of cases, such as the scans of one subject, that must not be split between training and validation.
Without given groups, each case is its own group. No group is in both training and validation of a fold.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold

from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.files import write_json
from nnunet_dg.names import did_you_mean

MOST_FOLDS = 1000
LARGEST_SEED = 2**32 - 1  # the largest that scikit-learn accepts


class SplitsExistError(DataError, FileExistsError):
    """The dataset already has splits."""


@dataclass(frozen=True)
class Fold:
    """One fold: training cases, validation cases, a description, and the cases in neither. Cases are sorted."""

    train: list[str]
    val: list[str]
    description: str
    left_out: list[str] = field(default_factory=list)


def leave_one_domain_out(
    domains: Mapping[str, str],
    groups: Mapping[str, str] | None = None,
    hold_out: float = 1.0,
    seed: int = 0,
    in_domain: float = 0.0,
    validation_domain: str | None = None,
) -> list[Fold]:
    """Fold k holds out the k-th domain, in alphabetical order, and the groups in it.

    The fold validates on the cases of that domain. It trains on the cases of all other domains, except those whose
    group is validated on; these are left out of the fold.

    If groups span several domains, as subjects scanned with several modalities do, this may leave no training cases.
    Then ``hold_out`` can be a fraction: the fold holds out only that fraction of the spanning groups and trains on the
    others, whose cases in the held-out domain are left out. Each fold takes the next groups of one random order.

    Args:
        domains: ``{case: domain}``.
        groups: ``{case: group}``; None makes each case its own group.
        hold_out: Fraction, in (0, 1], of the groups with cases both in the held-out domain and in others that a fold
            holds out. Groups with cases on one side only are not affected.
        seed: Seed of the order of groups; has no effect if ``hold_out`` is 1 and ``in_domain`` is 0.
        in_domain: Fraction, in [0, 1), of the training groups of each domain that are in validation instead, next to
            the unseen cases. At least one group per domain remains for training.
        validation_domain: Domain on which settings and trainers are chosen, or None. All folds hold it out and validate
            on it next to the held-out domain; no fold is about this domain. Its cases may be of the same groups as
            those of the held-out domain.

    Raises:
        DataError: There are fewer than two domains besides the validation domain, a fold has no training case, or all
            or none of its unseen cases are from the validation domain.
        SettingsError: ``hold_out``, ``seed`` or ``in_domain`` is out of range, or ``validation_domain`` is unknown.
    """
    folds = []
    for number, name in enumerate(domains_of_folds(domains, validation_domain)):
        val = {case for case in domains if domains[case] in (name, validation_domain)}
        text = f"validates on {name}, which no training case is from{_for_choosing(validation_domain)}"
        fold = _hold_out(domains, val, groups, hold_out, seed, number, text)
        folds.append(_with_in_domain(fold, domains, groups, in_domain, seed))
    return _checked(folds, domains, groups, validation_domain)


def single_source(
    domains: Mapping[str, str],
    groups: Mapping[str, str] | None = None,
    hold_out: float = 1.0,
    seed: int = 0,
    in_domain: float = 0.0,
    validation_domain: str | None = None,
) -> list[Fold]:
    """Fold k trains on the k-th domain only, in alphabetical order, and holds out all others and the groups in them.

    The fold validates on the cases of all other domains. It trains on the cases of its domain, except those whose group
    is validated on. Arguments, errors, and the treatment of groups in several domains are the same as for
    `leave_one_domain_out`.
    """
    folds = []
    for number, source in enumerate(domains_of_folds(domains, validation_domain)):
        val = {case for case in domains if domains[case] != source}
        text = f"trains on {source} only{_for_choosing(validation_domain)}"
        fold = _hold_out(domains, val, groups, hold_out, seed, number, text)
        folds.append(_with_in_domain(fold, domains, groups, in_domain, seed))
    return _checked(folds, domains, groups, validation_domain)


def few_shot(
    domains: Mapping[str, str],
    num_cases: int,
    folds: int = 5,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    source: Collection[str] = (),
) -> list[Fold]:
    """Each fold trains on a few random cases, and validates on all others except those of the same groups.

    Args:
        domains: ``{case: domain}``.
        num_cases: Number of training cases per fold.
        folds: Number of folds, each a new draw, 1 to `MOST_FOLDS`.
        seed: Seed of the draws; the same seed gives the same splits.
        groups: ``{case: group}``; None makes each case its own group.
        source: Domains from which training cases are drawn; empty for all. Validation uses cases of all domains,
            including those of ``source`` that were not drawn.

    Raises:
        DataError: There are too few cases, or none would remain for validation.
        SettingsError: ``folds`` or ``seed`` is out of range, or ``source`` has an unknown domain.
    """
    groups = groups or {case: case for case in domains}
    _whole("folds", folds, 1, MOST_FOLDS)
    _whole("seed", seed, 0, LARGEST_SEED)
    cases = _cases_of(domains, source)
    most = min(len(cases), len(domains) - 1)
    if not 1 <= num_cases <= most:
        where = f" of {', '.join(map(repr, source))}" if source else ""
        raise DataError(f"few-shot needs between 1 and {most} training cases{where}; got {num_cases}.")
    rng, result = np.random.default_rng(seed), []
    for _ in range(folds):
        train = sorted(rng.choice(cases, num_cases, replace=False).tolist())
        taken = {groups[case] for case in train}
        val = [case for case in sorted(domains) if groups[case] not in taken]
        if not val:
            raise DataError(f"The {num_cases} training cases cover every group, so none is left to validate on.")
        description = f"trains on {num_cases} cases{_per_domain(domains, train)}"
        result.append(Fold(train, val, description, _rest(domains, train, val)))
    check(result, groups)
    return result


def grouped(domains: Mapping[str, str], groups: Mapping[str, str], folds: int = 5, seed: int = 0) -> list[Fold]:
    """Ordinary cross-validation of all domains together, in which no group is split.

    Args:
        domains: ``{case: domain}``.
        groups: ``{case: group}``.
        folds: Number of folds, at least 2.
        seed: Seed of the shuffling.

    Raises:
        DataError: There are fewer groups than folds.
        SettingsError: ``seed`` is out of range.
    """
    _whole("seed", seed, 0, LARGEST_SEED)
    cases = sorted(domains)
    group_of_case = [groups[case] for case in cases]
    most = len(set(group_of_case))
    if not 2 <= folds <= most:
        raise DataError(f"grouped needs between 2 and {most} folds, at most one per group; got {folds}.")
    result = []
    for _, held_out in GroupKFold(folds, shuffle=True, random_state=seed).split(cases, groups=group_of_case):
        val = [cases[i] for i in held_out]
        description = f"validates on {len({groups[c] for c in val})} groups{_per_domain(domains, val)}"
        result.append(Fold(sorted(set(cases) - set(val)), val, description))
    check(result, groups)
    return result


def check(folds: list[Fold], groups: Mapping[str, str] | None = None) -> None:
    """Refuse folds in which training and validation share a case or a group, or one of the two is empty.

    Raises:
        DataError: A fold is invalid; the message names the case or group.
    """
    for number, fold in enumerate(folds):
        if not fold.train or not fold.val:
            part = "validation" if fold.train else "training"
            advice = " All its groups also have cases in held-out domains: hold out a fraction of them (`hold_out`)."
            raise DataError(f"Fold {number} has no {part} case.{advice if fold.left_out else ''}")
        if both := sorted(set(fold.train) & set(fold.val)):
            raise DataError(f"Fold {number} leaks: case {both[0]!r} is in training and in validation.")
        if groups is None:
            continue
        if both := sorted({groups[case] for case in fold.train} & {groups[case] for case in fold.val}):
            raise DataError(f"Fold {number} leaks: group {both[0]!r} is in training and in validation.")


def check_validation(
    number: int, train: Iterable[str], val: Iterable[str], domains: Mapping[str, str], validation_domain: str
) -> None:
    """Refuse a fold in which nothing can be chosen on the validation domain, or nothing else is unseen.

    Args:
        number: Number of the fold.
        train: Its training cases.
        val: Its validation cases.
        domains: ``{case: domain}``.
        validation_domain: Domain that is only validated on.

    Raises:
        DataError: The fold trains on the domain, does not validate on it, or validates on no other unseen domain.
    """
    trained_on = {domains[case] for case in train}
    unseen = {domains[case] for case in val} - trained_on
    if validation_domain in trained_on:
        problem = "trains on cases of the validation domain"
    elif validation_domain not in unseen:
        problem = "does not validate on the validation domain"
    elif len(unseen) == 1:
        problem = "has no unseen cases from other domains than the validation domain"
    else:
        return
    raise DataError(
        f"Fold {number} {problem} {validation_domain!r}. It must train on other domains only, and validate on this one "
        f"and on another unseen one. Name another validation domain, or make other splits."
    )


def domains_of_folds(domains: Mapping[str, str], validation_domain: str | None = None) -> list[str]:
    """The domain that each fold of `leave_one_domain_out` and `single_source` is about: all, or all but one, sorted.

    Args:
        domains: ``{case: domain}``.
        validation_domain: Domain without a fold, or None.

    Raises:
        DataError: There are fewer than two such domains.
        SettingsError: There is no such validation domain.
    """
    names = sorted(set(domains.values()))
    if len(names) < 2:
        given = f"There is one domain, {names[0]!r}" if names and names[0] else "No domains are given"
        raise DataError(f"{given}: splits by domain need at least two. Give the domain of each case in domains.json.")
    if validation_domain is None:
        return names
    if validation_domain not in names:
        close = did_you_mean(validation_domain, names)
        known = ", ".join(map(repr, names))
        raise SettingsError(f"`validation_domain` must be a domain, {known}; got {validation_domain!r}.{close}")
    if len(names) < 3:
        raise DataError(
            f"Besides the validation domain {validation_domain!r}, splits by domain need at least two others; there is "
            f"{next(name for name in names if name != validation_domain)!r}. Leave out `validation_domain`."
        )
    return [name for name in names if name != validation_domain]


def write(folds: list[Fold], path: Path, force: bool = False) -> None:
    """Write nnU-Net's ``splits_final.json``, atomically.

    Raises:
        SplitsExistError: The file exists, and ``force`` is False.
    """
    if os.path.lexists(path) and not force:
        raise SplitsExistError(
            f"{path} exists already. Replacing it changes the folds of trainings that used it. To replace it: `force`."
        )
    write_json(path, [{"train": fold.train, "val": fold.val} for fold in folds], indent=4)


def _hold_out(
    domains: Mapping[str, str],
    val: Collection[str],
    groups: Mapping[str, str] | None,
    fraction: float,
    seed: int,
    number: int,
    description: str,
) -> Fold:
    """The fold that validates on ``val`` and trains on the other cases, with no group on both sides."""
    _whole("seed", seed, 0, LARGEST_SEED)
    if not 0 < fraction <= 1:
        raise SettingsError(f"`hold_out` must be above 0 and at most 1; got {fraction!r}.")
    if fraction < 1 and groups is None:
        raise SettingsError(f"`hold_out` below 1 needs `groups`, which are not given; got {fraction!r}.")
    group_of = groups or {case: case for case in domains}
    train = set(domains) - set(val)
    shared = {group_of[case] for case in train} & {group_of[case] for case in val}
    held_out = _part(sorted(shared), fraction, seed, number)
    trained = sorted(case for case in train if group_of[case] not in held_out)
    validated = sorted(case for case in val if group_of[case] not in shared - held_out)
    return Fold(trained, validated, description, _rest(domains, trained, validated))


def _with_in_domain(
    fold: Fold, domains: Mapping[str, str], groups: Mapping[str, str] | None, fraction: float, seed: int
) -> Fold:
    """The fold with a fraction of each domain's training groups in validation instead, the same ones in all folds."""
    if not 0 <= fraction < 1:
        raise SettingsError(f"`in_domain` must be at least 0 and below 1; got {fraction!r}.")
    if fraction == 0:
        return fold
    group_of = groups or {case: case for case in domains}
    moved: set[str] = set()
    for domain in sorted({domains[case] for case in fold.train}):
        own = sorted({group_of[case] for case in domains if domains[case] == domain})
        order = [own[i] for i in np.random.default_rng(seed).permutation(len(own))]
        trained = {group_of[case] for case in fold.train if domains[case] == domain}
        chosen = [group for group in order if group in trained][: max(1, round(fraction * len(trained)))]
        moved |= set(chosen) if len(chosen) < len(trained) else set(chosen[:-1])
    train = [case for case in fold.train if group_of[case] not in moved]
    val = sorted({*fold.val, *(case for case in fold.train if group_of[case] in moved)})
    return Fold(
        train, val, f"{fold.description}; also validates on {len(val) - len(fold.val)} in-domain cases", fold.left_out
    )


def _part(groups: list[str], fraction: float, seed: int, number: int) -> set[str]:
    """The ``number``-th part of the groups in random order, starting over at the end."""
    size = len(groups) if fraction == 1 else min(len(groups), max(1, round(fraction * len(groups))))
    order = np.random.default_rng(seed).permutation(len(groups))
    return {groups[order[(number * size + i) % len(groups)]] for i in range(size)}


def _whole(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SettingsError(f"`{name}` must be a whole number from {low} to {high}; got {value}.")


def _cases_of(domains: Mapping[str, str], source: Collection[str]) -> list[str]:
    """The cases of these domains, or of all domains if none is given, sorted."""
    known = sorted(set(domains.values()))
    if unknown := [name for name in source if name not in known]:
        if not known:
            raise SettingsError(
                "`source` names domains, but no domains are given. Write domains.json, or leave it out."
            )
        close = did_you_mean(unknown[0], known)
        raise SettingsError(f"`source` must name domains, {', '.join(map(repr, known))}; got {unknown[0]!r}.{close}")
    return sorted(case for case in domains if not source or domains[case] in source)


def _rest(domains: Mapping[str, str], train: Collection[str], val: Collection[str]) -> list[str]:
    return sorted(set(domains) - set(train) - set(val))


def _checked(
    folds: list[Fold], domains: Mapping[str, str], groups: Mapping[str, str] | None, validation_domain: str | None
) -> list[Fold]:
    check(folds, groups)
    if validation_domain is not None:
        for number, fold in enumerate(folds):
            check_validation(number, fold.train, fold.val, domains, validation_domain)
    return folds


def _for_choosing(validation_domain: str | None) -> str:
    return "" if validation_domain is None else f"; {validation_domain} is for choosing"


def _per_domain(domains: Mapping[str, str], cases: list[str]) -> str:
    """``": 2 of A, 1 of B"``; empty if the only domain is `UNNAMED`."""
    counts = sorted(Counter(domains[case] for case in cases).items())
    named = ", ".join(f"{count} of {domain}" for domain, count in counts if domain)
    return f": {named}" if named else ""
