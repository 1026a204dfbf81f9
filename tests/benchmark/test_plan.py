"""A plan is checked before the first job: errors name the value, what is accepted, and what to do."""

import json
import re

import pytest
from benchmark_plans import DATASET, NEEDS_SNAKEMAKE, PLAN, folders, written  # noqa: F401, a fixture
from helpers import REPOSITORY

from nnunet_dg.benchmark import trainings
from nnunet_dg.benchmark.adapting import adapted_of
from nnunet_dg.benchmark.plan import parse_yaml, read_plan
from nnunet_dg.benchmark.trainings import trainings_of
from nnunet_dg.cli import main
from nnunet_dg.errors import DataError, SettingsError

pytestmark = NEEDS_SNAKEMAKE


def expanded(folder, **changes):
    plan = read_plan(written(folder, PLAN | changes))
    found = trainings_of(plan, folder)
    adapted_of(plan, found)
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, r"Unknown key 'epoch'\. Did you mean 'epochs'\? Accepted are datasets, trainers, "),
        ({"epochs": 0}, r"epochs: Input should be greater than or equal to 1; got 0\."),
        ({"epochs": "5"}, r"epochs: Input should be a valid integer; got '5'\."),
        ({"datasets": []}, r"datasets: List should have at least 1 item"),
        ({"datasets": [{"dataset": 701, "protokol": "existing"}]}, r"'protokol' in datasets\[0\]\. Did you mean 'prot"),
        (
            {"datasets": [{"dataset": 701, "protocol": "single_source"}]},
            r"datasets\[0\]\.protocol must be one of l",
        ),
        ({"datasets": [{"dataset": 701, "in_domain": 1.0}]}, r"datasets\[0\]\.in_domain: .* less than 1; got 1\.0"),
        ({"datasets": [{"dataset": 701, "folds": [0, 0]}]}, r"datasets\[0\]\.folds lists 0 twice\. Keep one\."),
        ({"trainers": {"a": {"setings": {}}}}, r"'setings' in trainers\.a\. Did you mean 'settings'\?"),
        (
            {"trainers": {"a": {"settings": {"p": 0.2}}}},
            r"trainers\.a\.settings are grouped by method, such as .*; got \{p: 0\.2\}\. Write \{METHOD: \{p: 0\.2\}\}",
        ),
        ({"trainers": {"a__b": None}}, r"trainers: names must be letters, .*; got 'a__b'\."),
        ({"metrics": ["hd95"]}, r"metrics must be one of dice, .*; got 'hd95'\. Did you mean 'hd95_mm'\?"),
        ({"seeds": [1, 1]}, r"seeds lists 1 twice\. Keep one\."),
        ({"adaptation": ["tent", "tent"]}, r"adaptation lists 'tent' twice\. Keep one\."),
        ({"adaptation": ["tent"], "stable": "b"}, r"stable must be one of nnUNetTrainer; got 'b'\."),
        ({"seeds": [2**32]}, r"seeds\[0\]: Input should be less than 4294967296"),
        ({"baseline": "nnUNetTrainr"}, r"baseline must be one of nnUNetTrainer; .* Did you mean 'nnUNetTrainer'\?"),
        ({"choose": {"nnUNetTrainer": ["nnUNetTrainer"]}}, r"choose\.nnUNetTrainer: List should have at least 2 items"),
        ({"choose": {"nnUNetTrainer": ["a", "b"]}}, r"choose: 'nnUNetTrainer' is a row of trainers\. Give the chosen"),
        (
            {"choose": {"best": ["nnUNetTrainer", "nnUNetTrainr"]}},
            r"choose\.best must be one of nnUNetTrainer; got 'nnUNetTrainr'\. Did you mean 'nnUNetTrainer'\?",
        ),
        ({"choose": {"best": ["nnUNetTrainer", "nnUNetTrainer"]}}, r"choose\.best lists 'nnUNetTrainer' twice"),
        (
            {"choose": {"best": ["a", "b"]}, "trainers": ["a", "b"]},
            r"choose: rows are chosen on a validation domain, which datasets\[0\] does not name\. Give it validation_d",
        ),
        ({"choose": {"best row": ["nnUNetTrainer", "nnUNetTrainer"]}}, r"choose: names must be letters"),
        ({"device": "gpu"}, r"device must be one of cpu, cuda, mps; got 'gpu'\. Did you mean 'cpu'\?"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(tmp_path, changes, message):
    path = written(tmp_path, PLAN | changes)
    with pytest.raises((SettingsError, DataError), match=message) as raised:
        read_plan(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: [0]\nseeds: [1]\n", r"The key 'seeds' appears more than once \(line 1\)\. Keep one\."),
        ("datasets: [1\n", r"not valid YAML: .* \(line 2\)\. Correct the file\."),
        ("- 1\n", r"a plan must have keys such as datasets and trainers; got \[1\]\."),
        ("", r"a plan must have keys such as datasets and trainers; got None\."),
        ("datasets: [1]\n", r"trainers: Field required"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_plan(written(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainers": {"a": {"trainer": "nnUNetTrainerDropGn"}}}, r"trainers\.a: nnU-Net does not find a trainer nnUN"),
        ({"trainers": {"nnUNetTrainer_5epochs": None}}, r"nnUNetTrainer_5epochs takes neither seed nor epochs"),
        (
            {"trainers": {"nnUNetTrainerMixStyle": {"settings": {"mixstyle": {"pp": 1}}}}},
            r"trainers\.nnUNetTrainerMixStyle\.settings: Unknown setting .*'pp'.* Accepted are ",
        ),
        (
            {"trainers": {"nnUNetTrainerMixStyle": {"settings": {"dropgen": {"p": 0.5}}}}},
            r"nnUNetTrainerMixStyle does not use 'dropgen'; its methods: mixstyle\.",
        ),
        ({"stress": ["gama"]}, r"stress must be one of .*; got 'gama'\. Did you mean 'gamma'\?"),
        ({"adaptation": ["tnt"]}, r"adaptation must be one of tent, sfb, alpha; got 'tnt'\. Did you mean 'tent'\?"),
        ({"adaptation": {"tent": {"step": 1}}}, r"Unknown setting 'step' in adaptation\.tent\. Did you mean 'steps'\?"),
        ({"adaptation": {"tent": {"rate": -1}}}, r"adaptation\.tent: `rate` must be .*; got -1"),
        ({"adaptation": ["alpha"]}, r"alpha needs a stable model .* key stable, one of nnUNetTrainer\."),
        ({"stable": "nnUNetTrainer"}, r"stable is used by the adaptations sfb and alpha, .* Remove it\."),
        ({"adaptation": ["sfb"], "stable": "nnUNetTrainer"}, r"sfb needs a second row next to the stable one"),
        (
            {"adaptation": ["sfb"], "stable": "nnUNetTrainer", "trainers": ["nnUNetTrainer", "nnUNetTrainerMixStyle"]},
            r"sfb chooses a number on in-domain validation cases, but Dataset701_Tiny has none\. Give the dataset in_d",
        ),
        (
            {"configurations": ["3d_fullress"]},
            r"configurations .* 2d, 3d_lowres, 3d_fullres; .* Did you mean '3d_fullres'\?",
        ),
        ({"plans": {"nnUNetPlans": "ExperimentPlaner"}}, r"plans\.nnUNetPlans: .* Did you mean 'ExperimentPlanner'\?"),
        ({"plans": ["nnUNetPlans"]}, r"plans: there are no plans .*nnUNetPlans\.json\. Make them, or name a planner"),
        (
            {"datasets": ["Dataset701_Tinny"]},
            r"datasets: there is no Dataset701_Tinny .* Did you mean 'Dataset701_Tiny'\?",
        ),
        ({"datasets": [702]}, r"^datasets: Could not find a dataset with the ID 702\. .* nnUNet_raw="),
        ({"configurations": ["3d_cascade_fullres"]}, r"cannot train a cascade; got '3d_cascade_fullres'\. Remove it\."),
        ({"datasets": [{"dataset": 701, "folds": [3]}]}, r"Dataset701_Tiny has the folds 0 to 2; got 3\."),
        ({"datasets": [701, "Dataset701_Tiny"]}, r"datasets lists Dataset701_Tiny twice\. Keep one\."),
        (
            {"datasets": [{"dataset": 701, "validation_domain": "b"}]},
            r"datasets: Dataset701_Tiny: `validation_domain` must be a domain, 'A', 'B', 'C'; got 'b'\. Did you mean",
        ),
        ({"datasets": [{"dataset": 701, "protocol": "existing"}]}, r"existing folds, but there is no .*splits_final"),
    ],
)
def test_what_is_not_installed_or_missing_is_refused_by_name(folders, changes, message):  # noqa: F811
    with pytest.raises((SettingsError, DataError), match=message):
        expanded(folders, **changes)


def test_configurations_are_those_of_plans_that_exist(folders):  # noqa: F811
    plans = folders / "preprocessed" / DATASET / "ownPlans.json"
    plans.parent.mkdir(parents=True)
    plans.write_text(json.dumps({"dataset_name": DATASET, "configurations": {"coarse": {}}}))
    assert {t.configuration for t in expanded(folders, plans=["ownPlans"], configurations=["coarse"])} == {"coarse"}
    with pytest.raises(SettingsError, match=r"\(Dataset701_Tiny, ownPlans\) must be one of coarse; got '3d_fullres'\."):
        expanded(folders, plans=["ownPlans"])
    with pytest.raises(DataError, match=r"no plans .*ownPlan\.json\. Did you mean 'ownPlans'\?"):
        expanded(folders, plans=["ownPlan"])


def test_every_error_names_the_plans_file(folders, capsys):  # noqa: F811
    for text in ("a: [", PLAN | {"stress": ["gama"]}, PLAN | {"datasets": [702]}, PLAN | {"adaptation": ["tnt"]}):
        file = written(folders, text)
        assert main(["benchmark", str(file), "--dry-run"]) == 1
        assert capsys.readouterr().err.startswith(f"nnunet-dg: {file}: ")


def test_one_training_per_row_and_seed_with_a_fold_per_domain(folders):  # noqa: F811
    rows = {"nnUNetTrainer": None, "half": {"trainer": "nnUNetTrainerMixStyle", "settings": {"mixstyle": {"p": 0.5}}}}
    found = expanded(folders, trainers=rows)
    assert [(t.row, t.trainer, t.seed) for t in found] == [
        ("nnUNetTrainer", "nnUNetTrainerERM", 0),
        ("nnUNetTrainer", "nnUNetTrainerERM", 1),
        ("half", "nnUNetTrainerMixStyle", 0),
        ("half", "nnUNetTrainerMixStyle", 1),
    ]
    assert {t.folds.numbers for t in found} == {(0, 1, 2)}
    assert len({t.results for t in found}) == 4
    assert found[3].section == {"mixstyle": {"p": 0.5}, "training": {"seed": 1, "epochs": 5}}


def test_rows_of_different_plans_never_share_a_results_folder(folders):  # noqa: F811
    rows = {"a": {"trainer": "nnUNetTrainerMixStyle"}, "small_a": {"trainer": "nnUNetTrainerMixStyle"}}
    plans = {"nnUNetPlans": "ExperimentPlanner", "nnUNetPlans_small": "ExperimentPlanner"}
    with pytest.raises(SettingsError, match=r"the rows 'small_a' \(plans nnUNetPlans\) and 'a' \(plans nnUNetPlans_sm"):
        expanded(folders, trainers=rows, plans=plans)
    assert expanded(folders, trainers={"a": rows["a"]}, plans=plans)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "1E-3", "+1.e-3", "0.001"])
def test_numbers_with_exponents_are_numbers(text):
    assert parse_yaml(f"rate: {text}") == {"rate": 0.001}
    assert parse_yaml("{a: 1e, b: e3, c: 1e3x}") == {"a": "1e", "b": "e3", "c": "1e3x"}


def test_other_epochs_have_another_results_folder(folders):  # noqa: F811
    (five, *_), (six, *_) = expanded(folders), expanded(folders, epochs=6)
    assert five.results != six.results
    assert five.results.name.split("__")[0] == trainings.SEEDED


def test_the_validation_domain_has_no_fold(folders):  # noqa: F811
    dataset = {"dataset": 701, "protocol": "single-source", "validation_domain": "C"}
    assert {t.folds.numbers for t in expanded(folders, datasets=[dataset])} == {(0, 1)}


def test_existing_folds_must_validate_on_the_validation_domain_and_not_train_on_it(folders):  # noqa: F811
    """Cases 0 to 5 are of the domains A, B, C, A, B, C."""
    splits = [
        {"train": ["case_0"], "val": ["case_1", "case_2"]},
        {"train": ["case_1", "case_2"], "val": ["case_0"]},
        {"train": ["case_0", "unknown"], "val": ["case_1"]},
    ]
    preprocessed = folders / "preprocessed" / "Dataset701_Tiny"
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    dataset = {"dataset": 701, "protocol": "existing", "validation_domain": "C"}
    assert expanded(folders, datasets=[dataset | {"folds": [0]}])[0].folds.validation_domain == "C"
    with pytest.raises(DataError, match="Fold 1 trains on cases of the validation domain 'C'"):
        expanded(folders, datasets=[dataset])
    with pytest.raises(DataError, match=r"domains\.json of Dataset701_Tiny has no domain for case 'unknown'"):
        expanded(folders, datasets=[dataset | {"folds": [2]}])


def test_the_plan_of_the_documentation_is_accepted(folders):  # noqa: F811
    page = (REPOSITORY / "docs" / "how-to" / "benchmark.md").read_text(encoding="utf-8")
    example, choose, adaptation = re.findall(r"```yaml\n(.*?)```", page, re.S)
    example = example.replace("501", "701") + adaptation.replace("features_only", "mind_quarter")
    plan = read_plan(written(folders, example))
    found = trainings_of(plan, folders)
    chosen = read_plan(written(folders, choose.replace("501", "701").replace("site 3", "C")))
    assert {t.folds.numbers for t in trainings_of(chosen, folders)} == {(0, 1)}
    assert set(chosen["choose"]["mind"]) < set(chosen["trainers"])
    assert len(found) == 6
    assert found[0].folds.in_domain == 0.2
    assert len(adapted_of(plan, found)) == 2 * (3 + 2 + 2)  # both seeds; sfb and alpha without the stable row
