"""Rows that are chosen on the validation domain, on validations made by hand."""

import json
import re
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from nnunet_dg.benchmark import steps
from nnunet_dg.benchmark.chosen import choose
from nnunet_dg.cli import main
from nnunet_dg.errors import DataError
from nnunet_dg.files import write_json
from nnunet_dg.reporting import results
from nnunet_dg.reporting.results import read_sources
from nnunet_dg.reporting.scores import VALIDATION
from nnunet_dg.reporting.sources import Source

DATASET = "Dataset701_Tiny"
DOMAINS = {"a1": "A", "b1": "B", "b2": "B", "c1": "C"}  # B is the validation domain
SPLITS = [{"train": ["c1"], "val": ["a1", "b1", "b2"]}, {"train": ["a1"], "val": ["b1", "b2", "c1"]}]
WORSE, BETTER = {"b1": 0.8, "b2": 0.5}, {"b1": 0.6, "b2": 0.8}  # a mean of 65 and of 70
ROWS = {"x": [WORSE, BETTER], "y": [BETTER, WORSE], "z": [WORSE, WORSE]}  # by fold


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """A function that writes validations with the given scores, and chooses rows as the workflow does."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setattr(results, name, str(tmp_path / name))
    preprocessed = tmp_path / "nnUNet_preprocessed" / DATASET
    preprocessed.mkdir(parents=True)
    (preprocessed / "domains.json").write_text(json.dumps(DOMAINS))
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))

    def run(choices, rows=ROWS, metric="dice", target=0.5, seeds=(0,)):
        trainings = {}
        for seed, row in product(seeds, rows):
            folder = tmp_path / f"{row}__seed{seed}"
            write_validations(folder, rows[row], metric, target)
            trainings[folder.name] = recorded(row, folder, seed)
        write_json(tmp_path / "trainings.json", trainings)
        arguments = [str(tmp_path / "trainings.json"), "compared", json.dumps(choices), str(tmp_path / "chosen")]
        assert steps.main(["choose", *arguments, "--metric", metric, "--validation-domain=B"]) == 0
        table = pd.read_csv(tmp_path / "chosen" / "compared.csv")
        return [tuple(line) for line in table[["row", "seed", "fold", "chosen"]].to_numpy()], table

    return run


def recorded(row, folder, seed=0):
    """The record of a training, of which a choice needs no plans and no data."""
    unused = dict.fromkeys(("dataset", "configuration", "plans", "own_plans", "trainer", "preprocessed"), "")
    return unused | {"row": row, "seed": seed, "comparison": "compared", "results": str(folder), "folds": [0, 1]}


def write_validations(folder, folds, metric, target):
    folder.mkdir(exist_ok=True)
    labels = {"background": 0, "organ": 1}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    (folder / "plans.json").write_text(json.dumps({"dataset_name": DATASET}))
    for number, scores in enumerate(folds):
        validation = folder / f"fold_{number}" / "validation"
        validation.mkdir(parents=True, exist_ok=True)
        files = {"prediction_file": "", "reference_file": ""}
        rows = [
            {"case": case, "label": "organ", "dice": 0.5, **files, metric: scores.get(case, target)}
            for case in SPLITS[number]["val"]
        ]
        settings = {"missing": "error", "tolerance_mm": 1.0, "ignore_affine": False}
        content = {"settings": settings, "cases": rows, "sha256": {}, "sha256_of_truths": {}}
        (validation / "evaluation.json").write_text(json.dumps(content))


def test_the_best_mean_on_the_validation_domain_is_chosen_in_each_fold(benchmark):
    chosen, table = benchmark({"best": ["x", "y"], "other": ["z", "x"]}, seeds=(3, 4))
    assert chosen == [
        (row, seed, fold, name)
        for seed in (3, 4)
        for row, names in {"best": "yx", "other": "zx"}.items()
        for fold, name in enumerate(names)
    ]
    assert table["means"].tolist()[:3] == ["x 65.0, y 70.0", "x 70.0, y 65.0", "z 65.0, x 65.0"]


@pytest.mark.parametrize(("names", "first"), [(["x", "z"], "x"), (["z", "x"], "z")])
def test_of_equal_rows_the_first_of_the_list_is_chosen(benchmark, names, first):
    chosen, _ = benchmark({"best": names})
    assert chosen[0] == ("best", 0, 0, first)


def test_scores_on_the_target_domain_do_not_affect_the_choice(benchmark):
    """Each row in turn is by far the best, then by far the worst, on the target domains A and C."""
    expected, _ = benchmark({"best": ["x", "y", "z"]})
    assert [name for *_, name in expected] == ["y", "x"]
    for row in ROWS:
        for target in (0.0, 1.0):
            changed = {row: [fold | {"a1": target, "c1": target} for fold in ROWS[row]]}
            assert benchmark({"best": ["x", "y", "z"]}, ROWS | changed)[0] == expected


def test_distances_are_better_where_they_are_lower(benchmark):
    chosen, table = benchmark({"best": ["x", "y"]}, metric="hd95_mm")
    assert [name for *_, name in chosen] == ["x", "y"]
    assert table["means"][0] == "x 0.65, y 0.70"


def test_a_chosen_row_is_read_like_a_results_folder_and_made_again_by_another_call(benchmark, tmp_path):
    for rows, expected in ((ROWS, ["y", "x"]), (ROWS | {"x": ROWS["y"], "y": ROWS["x"]}, ["x", "y"])):
        benchmark({"best": ["x", "y"]}, rows)
        folder = tmp_path / "chosen" / "compared__best__seed0"
        scores = read_sources([Source(folder, "best")], validation_domain="B")
        dice = scores.set_index(["fold", "case"])["dice"]
        assert [dice[fold, "b1"] for fold in "01"] == [0.6, 0.6]
        assert set(scores[scores["setting"] == VALIDATION]["case"]) == {"b1", "b2"}
        links = [Path(folder, f"fold_{fold}").resolve().parent.name for fold in (0, 1)]
        assert links == [f"{name}__seed0" for name in expected]
        assert (tmp_path / "x__seed0" / "fold_0" / "validation" / "evaluation.json").is_file()  # not removed


def test_the_report_says_which_domain_and_what_was_chosen(benchmark, tmp_path):
    benchmark({"best": ["x", "y"]})
    sources = [f"{row}={tmp_path / f'{row}__seed0'}" for row in ROWS]
    sources.append(f"best={tmp_path / 'chosen' / 'compared__best__seed0'}")
    options = ["--validation-domain=B", "--choices", str(tmp_path / "chosen" / "compared.csv"), "--baseline", "x"]
    assert main(["report", *sources, "-o", str(tmp_path / "report"), *options]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "The validation domain, on which settings and trainers are chosen, is B." in text
    assert re.search(r"\| best +\| 0 +\| 1 +\| x +\| x 70\.0, y 65\.0 +\|", text)
    (best, *_) = (line for line in text.splitlines() if line.startswith("| best "))
    assert "50.0 ± 0.0 (2)" in best  # a1 and c1, without the four validations on cases of B


def test_a_missing_validation_is_named(benchmark, tmp_path):
    benchmark({"best": ["x", "y"]})
    (tmp_path / "y__seed0" / "fold_1").rename(tmp_path / "moved")
    trainings = [recorded(row, tmp_path / f"{row}__seed0") for row in ROWS]
    choose(trainings, {"best": ["x", "z"]}, "B", "dice", tmp_path / "chosen")  # y is not needed
    with pytest.raises(DataError, match="Fold 1 of the row 'y' has no dice of a case of the validation domain 'B'"):
        choose(trainings, {"best": ["x", "y"]}, "B", "dice", tmp_path / "chosen")
