"""Train the extractor `synthetic` from a seed: resumable, and the same file for the same seed on the same machine."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.extractors.synthetic_network import FEATURES, STEM, WIDTHS, SyntheticNetwork, check_dims
from nnunet_dg.files import locked, write_json
from nnunet_dg.pretraining.checkpoint import checkpoint_of, resume, save, serialized, write_bytes
from nnunet_dg.pretraining.measures import held_out_measures
from nnunet_dg.pretraining.precision import autocast, precision_of, processor_of, reproducible
from nnunet_dg.pretraining.state import TrainingState
from nnunet_dg.pretraining.step import RECIPES, Recipe, draw_pairs, losses
from nnunet_dg.synthesis import Draws

EVERY = 125  # steps between checkpoints
STEPS = 1000  # as for the included files


def pretrain(
    output: Path,
    *,
    dims: int = 3,
    seed: int = 0,
    steps: int = STEPS,
    device: str = "cpu",
    every: int = EVERY,
    recipe: Recipe | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Train the network and write its weights, float16, and next to them a JSON file that says how they were made.

    An interrupted training resumes from its last checkpoint, and results in the same file as an uninterrupted one on
    the same device and kind of processor, with the same number of threads and the same versions.

    Args:
        output: File to write. The checkpoint is next to it until the training is complete.
        dims: Number of spatial axes, 2 or 3.
        seed: Seed of all random numbers, from 0 to below 2**31.
        steps: Number of steps. The learning rate falls over all of them, so this cannot be changed later.
        device: ``"cpu"`` or ``"cuda"``.
        every: Number of steps between checkpoints, and between measures on held-out pairs.
        recipe: What a step consists of; by default that of `RECIPES`.
        log: Called with one line of measures every ``every`` steps.

    Returns:
        ``output``.

    Raises:
        SettingsError: A setting has a value that is not accepted.
        DataError: ``output`` or its JSON file exists already, its checkpoint is from other settings, or another
            training writes to it.
        OSError: The folder cannot be written to, or the disk is full.
    """
    _check(output, dims, seed, steps, every, device)
    recipe = recipe or RECIPES[dims]
    chosen = torch.device(device)
    settings = _settings(dims, seed, steps, chosen, every, recipe)
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output.parent, "nnunet-dg pretrain", output.with_suffix(".json").name), reproducible(chosen):
        state = TrainingState(dims, seed, steps, chosen)
        measured, seconds = resume(output, state, settings)
        start = time.monotonic() - seconds
        with tqdm(total=steps, initial=state.step, desc="steps") as progress:
            while state.step < steps:
                terms = _train(state, recipe, seed, chosen, min(every, steps - state.step), progress)
                measured.append({"step": state.step, **terms, **_measures(state, recipe, seed)})
                log(", ".join(f"{name} {value:.4g}" for name, value in measured[-1].items()))
                save(output, state, settings, measured, time.monotonic() - start)
        _finish(output, state, settings, measured, time.monotonic() - start)
    return output


def _train(
    state: TrainingState, recipe: Recipe, seed: int, device: torch.device, count: int, progress: Any
) -> dict[str, float]:
    """Run this many steps; the mean of each term of the loss."""
    sums: dict[str, Tensor] = {}
    for _ in range(count):
        draws = Draws(seed, state.step, device)
        pairs = draw_pairs(recipe, state.dims, draws)
        terms = losses(state.network, pairs, recipe, draws, autocast(device, precision_of(device)))
        state.update(terms["total"])
        sums = {name: sums.get(name, 0) + term.detach() for name, term in terms.items()}
        progress.update()
    return {name: float(total) / count for name, total in sums.items()}


def _measures(state: TrainingState, recipe: Recipe, seed: int) -> dict[str, float]:
    network = SyntheticNetwork(state.dims).to(next(iter(state.average.values())).device)
    network.load_state_dict(state.average)
    return held_out_measures(network.eval(), recipe, seed)


def _finish(
    output: Path, state: TrainingState, settings: dict[str, Any], measured: list[dict[str, float]], seconds: float
) -> None:
    """Write the averaged weights in float16, the JSON file, and remove the checkpoint."""
    content = serialized({name: value.half().cpu().contiguous() for name, value in state.average.items()})
    description = {
        "sha256": hashlib.sha256(content).hexdigest(),
        **settings,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "seconds": round(seconds),
        "measures": measured,
    }
    write_json(output.with_suffix(".json"), description)
    write_bytes(output, content)  # last, so that an existing file is a complete one
    checkpoint_of(output).unlink(missing_ok=True)


def _settings(dims: int, seed: int, steps: int, device: torch.device, every: int, recipe: Recipe) -> dict[str, Any]:
    """What the result depends on, and may differ between installations or commands: numbers, strings and lists."""
    return {
        "dims": dims,
        "seed": seed,
        "steps": steps,
        "every": every,
        "device": device.type,
        "processor": processor_of(device),
        "precision": str(precision_of(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "nnunet-dg": version("nnunet-dg"),
        "torch": str(torch.__version__),
        "network": {"stem": STEM, "levels": list(WIDTHS[dims]), "features": FEATURES},
        "recipe": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(recipe).items()},
    }


def _check(output: Path, dims: int, seed: int, steps: int, every: int, device: str) -> None:
    check_dims(dims)
    for name, value, low in (("seed", seed, 0), ("steps", steps, 1), ("every", every, 1)):
        largest = 2**30 if name == "steps" else 2**31 - 1
        if not low <= value <= largest:
            raise SettingsError(f"`{name}` must be a whole number from {low} to {largest}; got {value}.")
    if device not in ("cpu", "cuda"):
        raise SettingsError(f"`device` must be cpu or cuda; got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("`device` is cuda, but PyTorch finds no GPU of NVIDIA here. Use cpu.")
    if output.suffix == ".json":
        raise SettingsError(f"`output` must not end in .json, which is the description next to it; got {output.name}.")
    if not output.name or output.is_dir():
        raise SettingsError(f"`output` must be a file, for example {output / 'mine.pt'}; {output} is a folder.")
    for path in (output, output.with_suffix(".json")):
        if path.exists() and not checkpoint_of(output).exists():
            raise DataError(f"{path} exists already. Remove it, or choose another `output`.")
