import json
from itertools import combinations

import pytest

from nnunet_dg.evaluation.splits import Fold, check, few_shot, grouped, leave_one_domain_out, single_source, write

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


def test_fold_k_trains_on_the_kth_domain_alone():
    folds = single_source(DOMAINS)
    assert [fold.train for fold in folds] == [["a1", "a2", "a3"], ["b1", "b2"], ["c1"]]
    assert all(sorted(fold.train + fold.val) == sorted(DOMAINS) for fold in folds)


def test_few_shot_draws_as_many_cases_as_asked_the_same_for_the_same_seed():
    folds = few_shot(DOMAINS, 2, folds=8, seed=3)
    assert folds == few_shot(DOMAINS, 2, folds=8, seed=3)
    assert folds != few_shot(DOMAINS, 2, folds=8, seed=4)
    assert all(len(fold.train) == 2 and sorted(fold.train + fold.val) == sorted(DOMAINS) for fold in folds)
    assert len({tuple(fold.train) for fold in folds}) > 1


def test_few_shot_validates_on_no_other_scan_of_a_patient_it_trains_on():
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
            "Fold 0 leaks: group 'p' is trained and validated on",
        ),
        (lambda: few_shot(DOMAINS, 6), "between 1 and 5 training cases; got 6"),
        (lambda: few_shot(DOMAINS, 0), "between 1 and 5 training cases; got 0"),
        (lambda: few_shot(DOMAINS, 2, groups=dict.fromkeys(DOMAINS, "p")), "none is left to validate on"),
        (lambda: grouped(DOMAINS, dict.fromkeys(DOMAINS, "p")), "between 2 and 1 folds"),
        (lambda: check([Fold(["a", "b"], ["b"], "")]), "Fold 0 leaks: case 'b'"),
        (lambda: check([Fold(["a"], ["b"], ""), Fold([], ["b"], "")]), "Fold 1 has no training case"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_file_that_is_there_stays_unless_forced(tmp_path):
    path = tmp_path / "splits_final.json"
    folds = leave_one_domain_out(DOMAINS)
    write(folds, path)
    assert json.loads(path.read_text())[2] == {"train": ["a1", "a2", "a3", "b1", "b2"], "val": ["c1"]}
    with pytest.raises(FileExistsError, match="--force"):
        write(single_source(DOMAINS), path)
    assert json.loads(path.read_text())[2]["val"] == ["c1"]
    write(single_source(DOMAINS), path, force=True)
    assert json.loads(path.read_text())[2]["train"] == ["c1"]
