"""The training: the same file for the same seed, also after interruptions at any moment."""

import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from nnunet_dg.cli import main
from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.extractors import build_extractor
from nnunet_dg.files import locked
from nnunet_dg.pretraining import measures
from nnunet_dg.pretraining import pretrain as module
from nnunet_dg.pretraining.checkpoint import checkpoint_of
from nnunet_dg.pretraining.losses import redundancy, voxel_contrast
from nnunet_dg.pretraining.measures import held_out_measures
from nnunet_dg.pretraining.precision import precision_of, reproducible
from nnunet_dg.pretraining.pretrain import pretrain
from nnunet_dg.pretraining.state import TrainingState
from nnunet_dg.pretraining.step import Recipe, draw_pairs, losses
from nnunet_dg.pretraining.voxels import draw_voxels
from nnunet_dg.synthesis import Draws, draw_pair

TINY = {2: Recipe((16,), 4, 1, 24), 3: Recipe((16,), 4, 1, 24)}


class Interrupted(BaseException):
    """Raised in place of a kill signal."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(module, "RECIPES", TINY)


def run(output, steps=6, **settings):
    return pretrain(output, steps=steps, every=2, log=lambda line: None, **{"dims": 2, **settings})


def complete(output):
    return output.exists() and not checkpoint_of(output).exists()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_seed_gives_a_file_that_the_extractor_reads(dims, tmp_path):
    first, again, other = (
        run(tmp_path / f"{name}.pt", steps=3, dims=dims, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    weights = torch.load(first, weights_only=True)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert first.stat().st_size < 60_000
    description = json.loads(first.with_suffix(".json").read_text())
    assert description["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    assert (description["seed"], description["steps"], description["dims"]) == (1, 3, dims)
    levels = {2: [16, 24], 3: [8, 24]}[dims]
    assert description["network"] == {"stem": 8, "levels": levels, "features": 16}
    assert [row["step"] for row in description["measures"]] == [2, 3]
    assert {"voxels", "redundancy", "total", "cka", "recall", "unrelated", "rank"} < {*description["measures"][0]}
    assert not checkpoint_of(first).exists()
    features = build_extractor("synthetic", weights=first, spatial_dims=dims)(torch.rand(1, 1, *[17] * dims))
    assert features.shape == (1, 16, *[17] * dims)


@pytest.mark.parametrize("moment", ["losses", "save", "write_bytes", "held_out_measures", "write_json", "_finish"])
def test_an_interruption_at_any_moment_changes_nothing(moment, tmp_path, monkeypatch):
    """Interrupted before the first, second and third call of a function, and resumed each time."""
    expected = run(tmp_path / "whole.pt")
    output, original = tmp_path / "part.pt", getattr(module, moment)
    for number in (1, 2, 3):
        calls = 0

        def stop(*arguments, number=number):
            nonlocal calls
            calls += 1
            if calls == number:
                raise Interrupted
            return original(*arguments)

        monkeypatch.setattr(module, moment, stop)
        if not complete(output):
            with pytest.raises(Interrupted) if number == 1 else suppress(Interrupted):
                run(output)
    monkeypatch.setattr(module, moment, original)
    if not complete(output):
        run(output)
    assert complete(output)
    assert output.read_bytes() == expected.read_bytes()
    whole, part = (json.loads(p.with_suffix(".json").read_text()) for p in (expected, output))
    assert whole | {"seconds": 0} == part | {"seconds": 0}


def test_a_killed_process_is_resumed(tmp_path):
    """A kill leaves a checkpoint or none, but nothing else, and the next run completes the same file."""
    code = (
        "import sys, torch; from pathlib import Path; from nnunet_dg.pretraining import pretrain as module;"
        "from nnunet_dg.pretraining.step import Recipe; torch.set_num_threads(int(sys.argv[2]));"
        "module.pretrain(Path(sys.argv[1]), dims=2, steps=4000, every=2, recipe=Recipe((16,), 4, 1, 24))"
    )
    output = tmp_path / "killed.pt"
    process = subprocess.Popen([sys.executable, "-c", code, str(output), str(torch.get_num_threads())])
    while not checkpoint_of(output).exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = torch.load(checkpoint_of(output), weights_only=True)
    step = before["state"]["step"]
    assert step >= 2
    state = TrainingState(2, 0, 4000, torch.device("cpu"))
    while state.step < step:
        module._train(state, TINY[2], 0, torch.device("cpu"), 1, module.tqdm(disable=True))
    for name, value in before["state"]["network"].items():
        assert torch.equal(state.network.state_dict()[name], value)


def test_other_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_finish", lambda *_: None)
    run(tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a.pt.checkpoint was written with seed 0, but this training has seed 1\. Use"):
        run(tmp_path / "a.pt", seed=1)
    with pytest.raises(DataError, match="with steps 6, but this training has steps 8"):
        run(tmp_path / "a.pt", steps=8)
    written = torch.load(checkpoint_of(tmp_path / "a.pt"), weights_only=True)
    for name, value, how in (
        ("network", {"stem": 4}, r"Resume with the version that wrote it"),
        ("torch", "2.0", r"Resume with the version that wrote it"),
        ("nnunet-dg", "0.0", r"Resume with the version that wrote it"),
        ("threads", 77, r"Set OMP_NUM_THREADS=77 to resume"),
        ("precision", "bfloat16", r"Resume on the same kind of processor"),
        ("processor", "VSX", r"Resume on the same kind of processor"),
        ("recipe", {**written["settings"]["recipe"], "voxels": 99}, r"Resume with the version that wrote it"),
    ):
        other = written | {"settings": written["settings"] | {name: value}}
        torch.save(other, checkpoint_of(tmp_path / "a.pt"))
        with pytest.raises(DataError, match=rf"with {name} .*, but this training has {name} .*\. {how}, or remove"):
            run(tmp_path / "a.pt")
    content = written | {"settings": {name: v for name, v in written["settings"].items() if name != "network"}}
    torch.save(content, checkpoint_of(tmp_path / "a.pt"))
    with pytest.raises(DataError, match=r"was written with network unknown, but"):
        run(tmp_path / "a.pt")
    content = written
    for state in ({}, content["state"] | {"average": {"other": torch.zeros(1)}}):
        torch.save(content | {"state": state}, checkpoint_of(tmp_path / "a.pt"))
        with pytest.raises(DataError, match=r"a.pt.checkpoint is damaged.* Remove it to start again"):
            run(tmp_path / "a.pt")
    checkpoint_of(tmp_path / "a.pt").write_bytes(b"PK damaged")
    with pytest.raises(DataError, match=r"a.pt.checkpoint is damaged.* Remove it to start again"):
        run(tmp_path / "a.pt")


def test_no_other_file_is_overwritten(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match=r"dataset\.json exists already\. Remove it, or choose another `output`"):
        run(tmp_path / "dataset.pt")
    assert (tmp_path / "dataset.json").read_text() == "{}"
    for folder in (tmp_path, Path(".")):
        with pytest.raises(SettingsError, match=r"`output` must be a file, for example .*mine\.pt; .* is a folder"):
            run(folder)


def test_a_training_seeds_no_other_random_numbers(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    first, same, other = (TrainingState(2, seed, 1, torch.device("cpu")).average for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeded
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


class Places(torch.nn.Module):
    """A network that shows where in the scene each voxel is: to be told by the test, in the order of the views."""

    def __init__(self, pairs):
        super().__init__()
        self.spatial_dims = 2
        self.unused = torch.nn.Parameter(torch.zeros(1))  # its device is that of the views
        self.pairs = list(pairs)

    def forward(self, views):
        places = []
        for number in range(len(views)):
            pair, view = self.pairs[number // 2], number % 2
            axes = [
                torch.arange(n).float() - start for n, start in zip(views.shape[2:], pair.starts[view], strict=True)
            ]
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
            places.append(torch.cat([torch.sin(grid * f + number // 2) for f in (0.3, 0.7, 1.1, 1.9)]))
        return torch.stack(places)


def test_the_loss_compares_the_same_places_of_both_views_of_every_pair():
    recipe = Recipe((24,), 8, 3, 64)
    draws = Draws(1, 0)
    pairs = draw_pairs(recipe, 2, draws)
    assert len({pair.starts for pair in pairs}) == 3
    terms = losses(Places(pairs), pairs, recipe, draws, nullcontext())
    shifted = [replace(pair, starts=pair.starts[::-1]) for pair in pairs]
    other = losses(Places(shifted), pairs, recipe, Draws(1, 0), nullcontext())
    assert terms["voxels"] < 0.3 * other["voxels"]


def test_the_terms_are_those_of_the_normalized_features_of_all_pairs():
    """By hand: InfoNCE between the drawn voxels of all pairs, and Barlow Twins of each pair."""
    recipe = Recipe((16,), 6, 3, 20, temperature=0.4, redundancy=0.7, off_diagonal=0.6)
    pairs = draw_pairs(recipe, 2, Draws(2, 0))
    features = torch.randn(6, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled = features * torch.tensor([1.0, 20.0, 0.1, 3.0, 7.0]).reshape(5, 1, 1) + 4
    terms = losses(lambda views: scaled, pairs, recipe, Draws(3, 0), nullcontext())
    draws, firsts, seconds, redundant = Draws(3, 0), [], [], []
    for number, pair in enumerate(pairs):
        here, there = draw_voxels(pair, 20, draws)
        normalized = F.instance_norm(features[2 * number : 2 * number + 2])
        firsts.append(torch.stack([normalized[0, :, x, y] for x, y in here.tolist()]))
        seconds.append(torch.stack([normalized[1, :, x, y] for x, y in there.tolist()]))
        redundant.append(redundancy(firsts[-1], seconds[-1], 0.6))
    voxels = voxel_contrast(torch.cat(firsts), torch.cat(seconds), 0.4)
    torch.testing.assert_close(terms["voxels"], voxels, rtol=1e-3, atol=0)
    torch.testing.assert_close(terms["redundancy"], sum(redundant) / 3, rtol=1e-3, atol=0)
    total = voxels + 0.7 * sum(redundant) / 3
    torch.testing.assert_close(terms["total"], total, rtol=1e-3, atol=0)


def test_measures_compare_the_same_places(monkeypatch):
    drawn = []
    monkeypatch.setattr(measures, "draw_pair", lambda *args: drawn.append(draw_pair(*args)) or drawn[-1])

    class Told(Places):
        def forward(self, views):
            self.pairs = [drawn[-1] if not self.swapped else replace(drawn[-1], starts=drawn[-1].starts[::-1])]
            return super().forward(views)

    network = Told([])
    network.swapped = False
    found = held_out_measures(network, Recipe((24,), 8, 1, 64), 0)
    assert found["cka"] > 0.99
    assert found["recall"] > 0.9
    assert found["rank"] > 3
    network.swapped = True
    swapped = held_out_measures(network, Recipe((24,), 8, 1, 64), 0)
    assert swapped["cka"] < 0.9
    assert swapped["recall"] < 0.5


def test_measures_compare_both_views():
    """A network that computes features of the first view only has none that agree with the second."""

    class FirstViewOnly(torch.nn.Conv2d):
        spatial_dims = 2

        def forward(self, views):
            return torch.stack([super().forward(views[0]), torch.randn(self.out_channels, *views.shape[2:])])

    found = held_out_measures(FirstViewOnly(1, 4, 3, padding=1), Recipe((24,), 8, 1, 200), 0)
    assert found["cka"] < 0.2
    assert found["recall"] < 0.1


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_matrix_units_of_the_processor_decide_on_the_precision(fast, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: fast, raising=False)
    assert precision_of(torch.device("cpu")) == expected


def test_on_a_gpu_only_reproducible_operations_are_used(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with reproducible(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
    with reproducible(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()


def test_each_step_has_its_own_random_numbers(tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(module, "Draws", lambda seed, key, device: keys.append((seed, key)) or Draws(seed, key, device))
    run(tmp_path / "a.pt", seed=5)
    assert keys == [(5, step) for step in range(6)]


def test_the_result_and_its_measures_are_those_of_the_average(tmp_path, monkeypatch):
    averages, networks, measured = [], [], []

    def save(output, state, *others):
        averages.append({name: value.clone() for name, value in state.average.items()})
        networks.append({name: value.clone() for name, value in state.network.state_dict().items()})

    def measures_of(network, recipe, seed):
        measured.append({name: value.clone() for name, value in network.state_dict().items()})
        return {}

    monkeypatch.setattr(module, "save", save)
    monkeypatch.setattr(module, "held_out_measures", measures_of)
    written = torch.load(run(tmp_path / "a.pt"), weights_only=True)
    name = "stem.convolution.weight"
    assert not torch.equal(averages[-1][name], networks[-1][name])
    assert all(torch.equal(written[n], averages[-1][n].half()) for n in averages[-1])
    assert all(torch.equal(of[name], average[name]) for of, average in zip(measured, averages, strict=True))


def test_gradients_are_clipped():
    state = TrainingState(2, 0, 200, torch.device("cpu"))
    state.update(1e6 * sum((p**2).sum() for p in state.network.parameters()))
    total = torch.stack([p.grad.square().sum() for p in state.network.parameters()]).sum().sqrt()
    assert total.item() == pytest.approx(2, rel=1e-3)


def test_crops_have_all_the_sizes_of_the_recipe():
    recipe = Recipe((16, 24), 4, 2, 10)
    drawn = [[pair.views.shape for pair in draw_pairs(recipe, 2, Draws(0, key))] for key in range(20)]
    assert all(len({*shapes}) == 1 for shapes in drawn)
    assert {shapes[0][-1] for shapes in drawn} == {16, 24}


def test_the_commands_defaults_are_those_of_the_function():
    from nnunet_dg.cli import _parser

    arguments = _parser().parse_args(["pretrain", "synthetic", "-o", "a.pt"])
    assert (arguments.steps, arguments.every) == (module.STEPS, module.EVERY)


def test_two_trainings_in_one_folder_do_not_wait_for_each_other(tmp_path):
    with locked(tmp_path, "nnunet-dg pretrain", "a.json"):
        run(tmp_path / "b.pt")
        with pytest.raises(DataError, match=r"Another nnunet-dg pretrain is running in .*a\.json\. Wait for it"):
            run(tmp_path / "a.pt")
        with pytest.raises(DataError, match=r"Another nnunet-dg pretrain"):  # it would write the same JSON file
            run(tmp_path / "a.pth")


def test_the_command(tmp_path, capsys):
    options = ["pretrain", "synthetic", "-o", str(tmp_path / "new" / "mine.pt"), "--dims", "2", "--steps", "2"]
    assert main([*options, "--seed", "-1"]) == 1
    assert "--seed must be a whole number from 0 to 2147483647; got -1." in capsys.readouterr().err
    assert main(options) == 0
    assert "Written:" in capsys.readouterr().out
    assert (tmp_path / "new" / "mine.json").is_file()
    assert main(options) == 1
    assert "exists already. Remove it, or choose another -o." in capsys.readouterr().err
    assert main(["pretrain", "synthetic", "-o", str(tmp_path / "a.json")]) == 1
    assert "-o must not end in .json" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [1, 3])
def test_an_interrupted_command_says_how_to_go_on(steps, tmp_path, capsys, monkeypatch):
    original, calls = module.losses, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == steps:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "losses", interrupted)
    output = tmp_path / "mine.pt"
    assert main(["pretrain", "synthetic", "-o", str(output), "--dims", "2", "--steps", "4", "--every", "2"]) == 130
    how = {1: "start again, since no checkpoint is written yet", 3: f"resume from {checkpoint_of(output)}"}[steps]
    assert f"Interrupted. Run the same command to {how}." in capsys.readouterr().err


def test_a_resumed_training_counts_the_time_before_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: None)
        run(tmp_path / "a.pt")
    content = torch.load(checkpoint_of(tmp_path / "a.pt"), weights_only=True)
    torch.save(content | {"seconds": 5000.0}, checkpoint_of(tmp_path / "a.pt"))
    run(tmp_path / "a.pt")
    assert json.loads((tmp_path / "a.json").read_text())["seconds"] >= 5000


def test_held_out_pairs_are_of_keys_that_no_step_has(monkeypatch):
    from nnunet_dg.extractors.synthetic_network import SyntheticNetwork

    keys = []
    monkeypatch.setattr(measures, "Draws", lambda seed, key, device: keys.append(key) or Draws(seed, key, device))
    held_out_measures(SyntheticNetwork(2).eval(), Recipe((24,), 6, 1, 24), 0)
    assert len({*keys}) == 4
    assert min(keys) >= 2**30
    with pytest.raises(SettingsError, match="`steps` must be a whole number from 1 to 1073741824"):
        pretrain(Path("a.pt"), steps=2**30 + 1)


def test_steps_make_the_network_better_than_random():
    """25 steps on the same pair lower its loss."""
    from nnunet_dg.pretraining.precision import autocast
    from nnunet_dg.pretraining.step import draw_pairs, losses
    from nnunet_dg.synthesis import Draws

    state, recipe = TrainingState(2, 0, 100, torch.device("cpu")), TINY[2]
    totals = []
    for _ in range(25):
        draws = Draws(0, 7)
        terms = losses(
            state.network, draw_pairs(recipe, 2, draws), recipe, draws, autocast(torch.device("cpu"), torch.float32)
        )  # fmt: skip
        state.update(terms["total"])
        totals.append(terms["total"].item())
    assert totals[-1] < 0.8 * totals[0]
    parts = terms["voxels"] + recipe.redundancy * terms["redundancy"]
    torch.testing.assert_close(terms["total"], parts)


def test_a_step_is_bounded_and_the_average_is_that_of_its_weights():
    """A loss of any size moves a weight by about the rate, and the average by hand, after one and two steps."""
    state = TrainingState(2, 0, 200, torch.device("cpu"))
    before = state.network.mixture.fine.weight.detach().clone()
    expected = before
    for step in (1, 2):
        state.update(1e6 * sum((p**2).sum() for p in state.network.parameters()))
        weight = state.network.mixture.fine.weight.detach()
        expected = expected + (weight - expected) * (1 - step / (step + 10))
        torch.testing.assert_close(state.average["mixture.fine.weight"], expected)
    assert (weight - before).abs().max() < 3 * 3e-3 * 2 / 50


def test_the_average_follows_the_weights_and_the_rate_its_schedule():
    state = TrainingState(2, 0, 200, torch.device("cpu"))
    for state.step, warmed in ((0, 1 / 50), (24, 0.5)):
        assert state.rate() == pytest.approx(3e-3 * warmed)
    state.step = 0
    rates = []
    initial = state.network.mixture.fine.weight.detach().clone()
    for _ in range(3):
        rates.append(state.rate())
        state.update(sum((p**2).sum() for p in state.network.parameters()))
    assert rates[1] == pytest.approx(2 * rates[0], rel=1e-2)
    moved = state.network.mixture.fine.weight.detach() - initial
    average = state.average["mixture.fine.weight"] - initial
    assert 0 < average.norm() < moved.norm()
    state.step = 199
    assert state.rate() == pytest.approx(3e-3 * 0.02, rel=0.05)


def test_measures_of_a_network_that_reads_the_place_are_exposed(monkeypatch):
    """Features that are the coordinates in the crop agree with those of another scene in the same place."""
    from nnunet_dg.extractors.synthetic_network import SyntheticNetwork

    network, recipe = SyntheticNetwork(2).eval(), Recipe((24,), 6, 1, 24)
    honest = held_out_measures(network, recipe, 0)
    assert honest["unrelated"] < 0.2

    def places(x):
        axes = torch.meshgrid(*[torch.arange(float(n)) for n in x.shape[2:]], indexing="ij")
        return torch.stack([axes[0], axes[1], axes[0] * axes[1]])[None].expand(len(x), -1, -1, -1)

    monkeypatch.setattr(network, "forward", places)
    leaking = held_out_measures(network, recipe, 0)
    assert leaking["unrelated"] == pytest.approx(1)
