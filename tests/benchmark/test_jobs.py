"""The jobs of a plan, what they wait for, and the table of what is done."""

import re
import sys
from pathlib import Path

import pytest
from benchmark_plans import NEEDS_SNAKEMAKE, PLAN, folders, written  # noqa: F401, a fixture

from nnunet_dg.benchmark.adapting import adapted_of
from nnunet_dg.benchmark.jobs import jobs_of
from nnunet_dg.benchmark.plan import read_plan
from nnunet_dg.benchmark.status import statuses, unfinished
from nnunet_dg.benchmark.trainings import trainings_of

pytestmark = NEEDS_SNAKEMAKE
ROWS = {"nnUNetTrainer": None, "half": {"trainer": "nnUNetTrainerMixStyle", "settings": {"mixstyle": {"p": 0.5}}}}
OUTPUT = Path("/benchmark")


@pytest.fixture
def jobs(folders):  # noqa: F811
    def expanded(**changes):
        plan = read_plan(written(folders, PLAN | {"trainers": ROWS} | changes))
        trainings = trainings_of(plan, folders)
        return jobs_of(plan, trainings, adapted_of(plan, trainings), OUTPUT)

    return expanded


def test_every_rule_has_its_jobs(jobs):
    counts = {rule: len(named) for rule, named in jobs(metrics=["dice", "nsd"], stress=["gamma"]).items()}
    assert counts == {
        "prepare": 1, "splits": 1, "plans": 4, "train": 12, "cases": 0, "adapt": 0, "evaluate": 12, "choose": 0,
        "stress": 6, "costs": 1, "report": 1,
    }  # fmt: skip


def test_another_environment_does_not_repeat_the_jobs(jobs):
    """Snakemake repeats a job whose command has changed, so that no command names the Python."""
    commands = [job.command for named in jobs(metrics=["nsd"], stress=["gamma"]).values() for job in named.values()]
    assert not [command for command in commands if sys.executable in command]
    assert any(command.startswith('"$PYTHON" -m ') for command in commands)


def test_dice_only_needs_no_evaluation(jobs):
    found = jobs()
    assert found["evaluate"] == {}
    (report,) = found["report"].values()
    assert sorted(report.after)[1:] == sorted(f"train/{name}" for name in found["train"])


def test_adapted_rows_are_predicted_evaluated_and_reported(jobs):
    found = jobs(
        datasets=[{"dataset": 701, "in_domain": 0.5}], seeds=[3], stable="half",
        adaptation={"tent": {"steps": 2}, "alpha": None},
    )  # fmt: skip
    plain, stable = (f"Dataset701_Tiny__3d_fullres__nnUNetPlans__{row}__seed3" for row in ROWS)
    tent = "tent_steps2"  # with the settings, so that others are predicted anew
    assert set(found["cases"]) == {f"Dataset701_Tiny/fold_{k}" for k in range(3)}
    assert set(found["adapt"]) == {
        f"{name}/fold_{k}" for name in (f"{plain}+{tent}", f"{stable}+{tent}", f"{plain}+alpha") for k in range(3)
    }
    assert set(found["evaluate"]) == {*found["adapt"], *found["train"]}  # so that all rows have the same metrics
    options = {job.command.partition(" -np ")[2] for job in found["evaluate"].values()}
    assert options == {"1 --missing skip"}  # a report refuses results of different settings
    tent, alpha = (found["adapt"][f"{plain}+{method}/fold_1"] for method in (tent, "alpha"))
    assert "--adapt tent" in tent.command
    assert "--steps 2" in tent.command
    assert "--seed 3" in tent.command
    assert " -i /benchmark/cases/Dataset701_Tiny/fold_1/all " in tent.command
    assert "--stable" not in tent.command
    assert tent.after == ["cases/Dataset701_Tiny/fold_1", f"train/{plain}/fold_1"]
    assert re.search(r" -i \S+/fold_1/unseen .*--stable \S+/nnUNetTrainerMixStyle__\S+_half_\S+ ", alpha.command)
    assert alpha.after == [*tent.after, f"train/{stable}/fold_1"]
    (report,) = found["report"].values()
    rows = [word.partition("=")[0] for word in report.command.split() if "=" in word]
    assert rows == ["nnUNetTrainer", "half", "nnUNetTrainer+tent", "nnUNetTrainer+alpha", "half+tent"]
    assert {f"evaluate/{name}" for name in found["adapt"]} < set(report.after)
    (costs,) = found["costs"].values()
    assert f" --adapted nnUNetTrainer+tent /benchmark/adapted/{plain}+tent_steps2 " in costs.command
    assert {f"evaluate/{name}" for name in found["adapt"]} < set(costs.after)


def test_rows_are_chosen_on_the_validation_domain_and_reported(jobs):
    datasets, choose = [{"dataset": 701, "validation_domain": "B"}], {"best": ["half", "nnUNetTrainer"]}
    found = jobs(datasets=datasets, choose=choose, metrics=["nsd"])
    (splits,) = found["splits"].values()
    assert splits.command.endswith(" --validation-domain=B --keep")
    (name, job), (report,) = *found["choose"].items(), found["report"].values()
    assert set(job.after) == {f"evaluate/{training}" for training in found["train"]}
    assert f"choose/{name}" in report.after
    words = report.command.split()
    assert [f"best=/benchmark/chosen/{name}__best__seed{seed}" for seed in (0, 1)] == words[6:8]
    assert words[words.index("--choices") + 1] == f"/benchmark/chosen/{name}.csv"
    assert "--validation-domain=B" in words
    others = jobs(datasets=datasets, choose={"best": ["nnUNetTrainer", "half"]}, metrics=["nsd"])
    assert others["choose"][name].command != job.command  # so that the job is repeated
    assert "--validation-domain=B" in jobs(datasets=datasets)["report"][name].command  # also without a chosen row


def test_every_job_waits_for_jobs_that_exist(jobs):
    found = jobs(
        metrics=["nsd"], stress=["gamma"], adaptation=["tent"], choose={"best": ["half", "nnUNetTrainer"]},
        datasets=[{"dataset": 701, "validation_domain": "A"}], configurations=["2d", "3d_fullres"],
        plans={"a": "ExperimentPlanner", "b": "ExperimentPlanner"},
    )  # fmt: skip
    known = {f"{rule}/{name}" for rule, named in found.items() for name in named}
    for named in found.values():
        for name, job in named.items():
            assert set(job.after) <= known, name
    prepare = found["prepare"]
    assert prepare["Dataset701_Tiny__b"].after == ["prepare/Dataset701_Tiny__a"]  # both write the same fingerprint
    assert prepare["Dataset701_Tiny__a"].after == []
    assert set(found["splits"]["Dataset701_Tiny"].after) == {f"prepare/{name}" for name in prepare}


def test_a_training_is_nnunets_own_command(jobs):
    name = "Dataset701_Tiny__3d_fullres__nnUNetPlans__half__seed1/fold_2"
    job = jobs(device="cuda")["train"][name]
    assert job.command == (
        "nnUNetv2_train Dataset701_Tiny 3d_fullres 2 -p nnUNetPlans_half_5epochs_seed1 -tr nnUNetTrainerMixStyle "
        "-device cuda --c"
    )


def test_other_settings_or_lengths_repeat_the_job_that_writes_the_plans(jobs):
    def plans_job(**changes):
        (command,) = (job.command for name, job in jobs(**changes)["plans"].items() if "half__seed0" in name)
        return command

    rows = {"half": ROWS["half"] | {"settings": {"mixstyle": {"p": 0.25}}}}
    assert len({plans_job(), plans_job(epochs=6), plans_job(trainers=rows)}) == 3


def test_repeated_trainings_share_a_name_in_the_report(jobs):
    (report,) = jobs(datasets=[{"dataset": 701, "folds": [2, 0]}])["report"].values()
    words = report.command.split()
    assert words[words.index("-f") :][:3] == ["-f", "2", "0"]  # results folders may have other folds
    assert [word.partition("=")[0] for word in words if "=" in word] == 2 * ["nnUNetTrainer"] + 2 * ["half"]
    assert words[words.index("--baseline") + 1] == "nnUNetTrainer"


def test_the_table_tells_what_waits_runs_is_done_and_has_failed(tmp_path):
    names = ["waits", "runs", "done", "failed"]
    (tmp_path / "logs" / "train").mkdir(parents=True)
    (tmp_path / "done" / "train").mkdir(parents=True)
    (tmp_path / "done" / "train" / "done").touch()
    (tmp_path / "logs" / "train" / "runs.log.running").touch()
    (tmp_path / "logs" / "train" / "failed.log.failed").touch()
    error = f"nnunet-dg: {'/a_long_folder' * 10} is missing. Make it."
    (tmp_path / "logs" / "train" / "failed.log").write_text(f"Epoch 1\n{error}\n\n")
    found = list(statuses({"train": names}, tmp_path, running=True))
    assert [job.state for job in found] == names
    lines = [str(line) for line in unfinished(found, tmp_path)]
    assert lines[0] == "runs: train runs"
    assert lines[1].splitlines()[:2] == ["failed: train failed", f"  {error}"]
    stopped = statuses({"train": names}, tmp_path, running=False)
    assert [job.state for job in stopped] == ["waits", "interrupted", "done", "failed"]
