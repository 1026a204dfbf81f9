import json
from itertools import combinations

import pytest

from nnunet_dg.datasets.splits import (
    Fold,
    check,
    check_validation,
    few_shot,
    grouped,
    leave_one_domain_out,
    single_source,
    write,
)
from nnunet_dg.errors import SettingsError

DOMAINS = {"a1": "A", "c1": "C", "b1": "B", "a2": "A", "b2": "B", "a3": "A"}


def test_fold_k_holds_out_the_kth_domain():
    folds = leave_one_domain_out(DOMAINS)
    assert [fold.val for fold in folds] == [["a1", "a2", "a3"], ["b1", "b2"], ["c1"]]
    assert [fold.train for fold in folds] == [
        ["b1", "b2", "c1"],
        ["a1", "a2", "a3", "c1"],
        ["a1", "a2", "a3", "b1", "b2"],
    ]
    assert "B" in folds[1].description


def test_fold_k_trains_only_on_the_kth_domain():
    folds = single_source(DOMAINS)
    assert [fold.train for fold in folds] == [["a1", "a2", "a3"], ["b1", "b2"], ["c1"]]
    assert all(sorted(fold.train + fold.val) == sorted(DOMAINS) for fold in folds)


@pytest.mark.parametrize("make", [leave_one_domain_out, single_source])
def test_the_validation_domain_is_validated_on_in_every_fold_and_has_none_of_its_own(make):
    folds = make(DOMAINS, validation_domain="B")
    kth = [["a1", "a2", "a3"], ["c1"]]
    others = [["c1"], ["a1", "a2", "a3"]]
    train, target = (others, kth) if make is leave_one_domain_out else (kth, others)
    assert [fold.train for fold in folds] == train
    assert [fold.val for fold in folds] == [sorted([*cases, "b1", "b2"]) for cases in target]
    moved = make(DOMAINS, in_domain=0.4, validation_domain="B")[0 if make is single_source else 1]
    assert {DOMAINS[case] for case in moved.val} == {"A", "B", "C"}
    assert {DOMAINS[case] for case in moved.train} == {"A"}


def test_few_shot_draws_the_given_number_of_cases_reproducibly():
    folds = few_shot(DOMAINS, 2, folds=8, seed=3)
    assert folds == few_shot(DOMAINS, 2, folds=8, seed=3)
    assert folds != few_shot(DOMAINS, 2, folds=8, seed=4)
    assert all(len(fold.train) == 2 and sorted(fold.train + fold.val) == sorted(DOMAINS) for fold in folds)
    assert len({tuple(fold.train) for fold in folds}) > 1


def test_few_shot_does_not_validate_on_other_scans_of_training_patients():
    groups = {"a1": "p", "a2": "p", "a3": "q", "b1": "r", "b2": "r", "c1": "s"}
    for fold in few_shot(DOMAINS, 2, folds=20, groups=groups):
        assert not {groups[c] for c in fold.train} & {groups[c] for c in fold.val}
        assert set(fold.val) == {c for c in DOMAINS if groups[c] not in {groups[t] for t in fold.train}}


def test_grouped_validates_on_every_case_once_and_splits_no_group():
    domains = {f"case_{i}": "AB"[i % 2] for i in range(20)}
    groups = {case: f"patient_{i // 3}" for i, case in enumerate(domains)}
    folds = grouped(domains, groups, folds=4, seed=1)
    assert len(folds) == 4
    assert sorted(case for fold in folds for case in fold.val) == sorted(domains)
    for one, other in combinations(folds, 2):
        assert not {groups[c] for c in one.val} & {groups[c] for c in other.val}
    assert folds == grouped(domains, groups, folds=4, seed=1)
    assert folds != grouped(domains, groups, folds=4, seed=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: leave_one_domain_out({"a": "A", "b": "A"}), "There is one domain, 'A'.*domains.json"),
        (lambda: single_source({"a": "A", "b": "A"}), "There is one domain"),
        (
            lambda: leave_one_domain_out({"a": "A", "b": "B"}, {"a": "p", "b": "p"}),
            r"Fold 0 has no training case.*hold out a fraction of them \(`hold_out`\)",
        ),
        (lambda: few_shot(DOMAINS, 6), "between 1 and 5 training cases; got 6"),
        (lambda: few_shot({}, 1, source=["Z"]), "no domains are given. Write domains.json, or leave it out"),
        (lambda: few_shot(DOMAINS, 0), "between 1 and 5 training cases; got 0"),
        (lambda: few_shot(DOMAINS, 2, groups=dict.fromkeys(DOMAINS, "p")), "cover every group, so none is left"),
        (lambda: grouped(DOMAINS, dict.fromkeys(DOMAINS, "p")), "between 2 and 1 folds"),
        (lambda: check([Fold(["a", "b"], ["b"], "")]), "Fold 0 leaks: case 'b'"),
        (lambda: check([Fold(["a"], ["b"], ""), Fold([], ["b"], "")]), "Fold 1 has no training case"),
        (lambda: check([Fold(["a"], ["b"], "")], {"a": "p", "b": "p"}), "Fold 0 leaks: group 'p'"),
        (lambda: few_shot(DOMAINS, 2, folds=0), "`folds` must be a whole number from 1 to 1000; got 0"),
        (lambda: few_shot(DOMAINS, 2, folds=-3), "`folds` must be .* got -3"),
        (lambda: few_shot(DOMAINS, 2, folds=10**50), "`folds` must be"),
        (lambda: few_shot(DOMAINS, 2, seed=-1), "`seed` must be .* got -1"),
        (lambda: few_shot(DOMAINS, 2, seed=2**32), "`seed` must be"),
        (lambda: grouped(DOMAINS, {c: c for c in DOMAINS}, seed=2**32), "`seed` must be"),
        (lambda: few_shot(DOMAINS, 4, source=["A"]), "between 1 and 3 training cases of 'A'; got 4"),
        (lambda: few_shot(DOMAINS, 1, source=["a"]), "'A', 'B', 'C'; got 'a'. Did you mean 'A'?"),
        (lambda: leave_one_domain_out(DOMAINS, hold_out=0), "`hold_out` must be above 0"),
        (lambda: leave_one_domain_out(DOMAINS, hold_out=0.2), "needs `groups`, which are not given; got 0.2"),
        (lambda: single_source(DOMAINS, hold_out=1.5), "`hold_out` must be .* got 1.5"),
        (lambda: single_source(DOMAINS, hold_out=float("nan")), "`hold_out` must be .* got nan"),
        (
            lambda: single_source(DOMAINS, validation_domain="b"),
            r"`validation_domain` must be a domain, 'A', 'B', 'C'; got 'b'\. Did you mean 'B'\?",
        ),
        (
            lambda: leave_one_domain_out({"a": "A", "b": "B"}, validation_domain="A"),
            "Besides the validation domain 'A', .* at least two others; there is 'B'",
        ),
        (lambda: check_validation(1, ["a1"], ["b1", "a2"], DOMAINS, "A"), "Fold 1 trains on .* validation domain 'A'"),
        (lambda: check_validation(0, ["a1"], ["b1"], DOMAINS, "C"), "Fold 0 does not validate on .* domain 'C'"),
        (
            lambda: check_validation(0, ["a1"], ["a2", "c1"], DOMAINS, "C"),
            "Fold 0 has no unseen cases from other domains than the validation domain 'C'",
        ),
    ],
)
def test_impossible_splits_and_invalid_arguments_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "splits_final.json"
    folds = leave_one_domain_out(DOMAINS)
    write(folds, path)
    assert json.loads(path.read_text())[2] == {"train": ["a1", "a2", "a3", "b1", "b2"], "val": ["c1"]}
    with pytest.raises(FileExistsError, match="To replace it: `force`"):
        write(single_source(DOMAINS), path)
    assert json.loads(path.read_text())[2]["val"] == ["c1"]
    write(single_source(DOMAINS), path, force=True)
    assert json.loads(path.read_text())[2]["train"] == ["c1"]


def test_the_cases_of_held_out_subjects_are_left_out_of_training():
    """Subject p was scanned in domains A and B, all others once."""
    groups = {case: case for case in DOMAINS} | {"a1": "p", "b1": "p"}
    first, second, third = leave_one_domain_out(DOMAINS, groups)
    assert (first.val, first.train, first.left_out) == (["a1", "a2", "a3"], ["b2", "c1"], ["b1"])
    assert (second.val, second.train, second.left_out) == (["b1", "b2"], ["a2", "a3", "c1"], ["a1"])
    assert (third.val, third.train, third.left_out) == (["c1"], ["a1", "a2", "a3", "b1", "b2"], [])
    sources = single_source(DOMAINS, groups)
    assert [fold.train for fold in sources] == [["a2", "a3"], ["b2"], ["c1"]]
    assert [fold.left_out for fold in sources] == [["a1"], ["b1"], []]
    assert sources[0].val == ["b1", "b2", "c1"]


@pytest.mark.parametrize("make", [leave_one_domain_out, single_source])
@pytest.mark.parametrize("fraction", [0.2, 0.25, 0.5])
def test_a_fraction_of_subjects_is_held_out_where_all_are_in_every_domain(make, fraction):
    """As in BraTS, with four contrasts per subject. Each fold trains and validates on different subjects."""
    domains = {f"s{i}_{domain}": domain for i in range(20) for domain in ("flair", "t1", "t1ce", "t2")}
    groups = {case: case.split("_")[0] for case in domains}
    folds = make(domains, groups, hold_out=fraction, seed=1)
    held_out = [{groups[case] for case in fold.val} for fold in folds]
    for number, fold in enumerate(folds):
        name = sorted(set(domains.values()))[number]
        kth, others = (fold.val, fold.train) if make is leave_one_domain_out else (fold.train, fold.val)
        assert {domains[case] for case in kth} == {name}
        assert {domains[case] for case in others} == set(domains.values()) - {name}
        assert len(held_out[number]) == round(20 * fraction)
        assert {groups[case] for case in fold.train} == set(groups.values()) - held_out[number]
        assert sorted(fold.train + fold.val + fold.left_out) == sorted(domains)
    if fraction == 0.25:
        assert set.union(*held_out) == set(groups.values())  # four folds validate on each subject once
    assert folds == make(domains, groups, hold_out=fraction, seed=1)
    assert folds != make(domains, groups, hold_out=fraction, seed=2)


def test_few_shot_draws_from_the_source_only_and_validates_on_all_other_subjects():
    groups = {case: case for case in DOMAINS} | {"a1": "p", "b1": "p"}
    drawn = set()
    for fold in few_shot(DOMAINS, 2, folds=20, groups=groups, source=["A"]):
        assert {DOMAINS[case] for case in fold.train} == {"A"}
        same = {case for case in DOMAINS if groups[case] in {groups[t] for t in fold.train}}
        assert set(fold.val) == set(DOMAINS) - same
        assert set(fold.left_out) == same - set(fold.train)
        drawn |= set(fold.train)
    assert drawn == {"a1", "a2", "a3"}
    both = few_shot(DOMAINS, 4, folds=20, source=["B", "C", "A"])
    assert both == few_shot(DOMAINS, 4, folds=20)


def test_an_interrupted_write_keeps_the_existing_splits(tmp_path, monkeypatch):
    path = tmp_path / "splits_final.json"
    write(leave_one_domain_out(DOMAINS), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(single_source(DOMAINS), path, force=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["splits_final.json"]


@pytest.mark.parametrize("scheme", [leave_one_domain_out, single_source])
def test_a_fraction_of_the_training_domains_is_validated_on(scheme):
    domains = {f"{domain}_{i}": domain for domain in "ABC" for i in range(10)}
    groups = {case: case[:-1] + str(int(case[-1]) // 2) for case in domains}  # two cases each
    plain, folds = scheme(domains, groups), scheme(domains, groups, in_domain=0.2)
    for before, fold in zip(plain, folds, strict=True):
        trained = {domains[case] for case in before.train}
        moved = set(fold.val) - set(before.val)
        assert {domain: sum(domains[case] == domain for case in moved) for domain in trained} == dict.fromkeys(
            trained, 2
        )
        assert set(fold.train) == set(before.train) - moved
        assert not {groups[case] for case in fold.train} & {groups[case] for case in fold.val}
        assert f"also validates on {2 * len(trained)} in-domain cases" in fold.description
    assert scheme(domains, groups, in_domain=0.2) == folds
    assert scheme(domains, groups, in_domain=0.2, seed=1) != folds


def test_every_training_domain_keeps_a_group():
    (fold, _) = single_source({"A_0": "A", "A_1": "A", "B_0": "B"}, in_domain=0.9)[:2]
    assert len(fold.train) == 1
    assert len(fold.val) == 2


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_an_impossible_in_domain_fraction_is_refused(fraction):
    with pytest.raises(SettingsError, match=r"`in_domain` must be at least 0 and below 1; got"):
        single_source({"A_0": "A", "B_0": "B"}, in_domain=fraction)
