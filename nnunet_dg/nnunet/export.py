"""Handing a model whose network is nnU-Net's own to people who have nnU-Net alone."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pooch
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string, get_output_folder
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from nnunet_dg.extractors.nnunet_folder import read_checkpoint
from nnunet_dg.nnunet.auxiliary_trainer import LOG_PREFIX
from nnunet_dg.nnunet.look_up import look_up
from nnunet_dg.nnunet.settings import KEY

PLAIN = "nnUNetTrainer"
RECORD = "exported_by_nnunet-dg.json"
COPIED = ("progress.png", "validation/summary.json")  # of a fold, as nnU-Net's own export
COPIED_CROSS_VALIDATION = ("summary.json", "postprocessing.pkl", "postprocessing.json")


class ExportError(RuntimeError):
    """Nothing was exported, and why."""


def export(
    dataset: str | int,
    configuration: str,
    trainer: str,
    output: Path,
    plans: str = "nnUNetPlans",
    folds: Sequence[int | str] = (0, 1, 2, 3, 4),
    checkpoint: str = "checkpoint_final.pth",
) -> Path:
    """Write the model of a training as one of plain nnUNetTrainer, after checking that both give the same logits.

    Args:
        dataset: name or number.
        configuration: for example ``"3d_fullres"``.
        trainer: the trainer that trained it.
        output: a folder, for ``nnUNetv2_predict_from_modelfolder -m``, or a file ``*.zip``, for
            ``nnUNetv2_install_pretrained_model_from_zip``. Must not exist.
        plans: the plans' name.
        folds: numbers, or ``"all"``.
        checkpoint: the file of each fold.

    Returns:
        The output.

    Raises:
        ExportError: the model is not there, or plain nnU-Net cannot run it.
    """
    if not nnUNet_results:
        raise ExportError("nnUNet_results is not set. Set it to the folder that holds the trained models.")
    results = Path(get_output_folder(str(dataset), trainer, plans, configuration))
    _refuse_other_networks(trainer)
    _check_complete(results, folds, checkpoint)
    if output.exists():
        raise ExportError(f"{output} exists already. Remove it, or choose another output.")
    sources = {f"fold_{fold}": results / f"fold_{fold}" / checkpoint for fold in folds}
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary) / results.parent.name / f"{PLAIN}__{plans}__{configuration}"
        _write_plain_model(results, model, sources)
        print(f"Comparing the logits of {trainer} and {PLAIN}, on the CPU, {len(folds)} folds", flush=True)
        difference = _largest_difference(results, model, folds, checkpoint)
        if difference != 0:
            raise ExportError(
                f"Plain {PLAIN} gives other logits than {trainer}: they differ by up to {difference:g}. Nothing was "
                f"exported; please report this with the plans.json of {results}."
            )
        _write(model, RECORD, _record(results, trainer, configuration, plans, sources))
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".zip":
            shutil.make_archive(str(output.with_suffix("")), "zip", temporary)
        else:
            shutil.move(model, output)
    return output


def _write_plain_model(results: Path, model: Path, sources: dict[str, Path]) -> None:
    """What nnUNetTrainer would have left in its results folder, and nnU-Net's own export takes along."""
    model.mkdir(parents=True)
    _write(model, "plans.json", _without_ours(json.loads((results / "plans.json").read_text())))
    for fold, source in sources.items():
        (model / fold).mkdir()
        try:
            torch.save(_plain_checkpoint(read_checkpoint(source)), model / fold / source.name)
        except ValueError as error:
            raise ExportError(str(error)) from error
    crossval = f"crossval_results_folds_{folds_tuple_to_string([fold.removeprefix('fold_') for fold in sources])}"
    copied = ["dataset.json", "dataset_fingerprint.json"]
    copied += [f"{fold}/{name}" for fold in sources for name in COPIED]
    copied += [f"{crossval}/{name}" for name in COPIED_CROSS_VALIDATION]
    for name in copied:
        _copy(results / name, model / name)


def _check_complete(results: Path, folds: Sequence[int | str], checkpoint: str) -> None:
    wanted = ["plans.json", "dataset.json", *(f"fold_{fold}/{checkpoint}" for fold in folds)]
    if missing := [name for name in wanted if not (results / name).is_file()]:
        there = sorted(str(path.relative_to(results)) for path in results.glob("fold_*/*.pth"))
        raise ExportError(
            f"{results} lacks {', '.join(missing)}. There: {', '.join(there) or 'no checkpoint'}. Choose with -f and "
            f"-chk, or train what is missing."
        )


def _refuse_other_networks(trainer: str) -> None:
    found = look_up("nnunetv2.training.nnUNetTrainer", trainer)
    if found is None:
        raise ExportError(f"nnU-Net finds no trainer {trainer}. `nnunet-dg doctor` shows ours.")
    if hasattr(found, "dropgen"):
        raise ExportError(
            f"{trainer}'s network is not nnU-Net's own: it runs a frozen feature extractor at inference, which needs "
            f"nnunet-dg. Share it with nnUNetv2_export_model_to_zip, and install nnunet-dg where it is used."
        )


def _without_ours(plans: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plans.items() if key != KEY}


def _plain_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What nnUNetTrainer would have written: its own parameter group, its own curves, plans without our settings."""
    optimizer = checkpoint["optimizer_state"]
    own = optimizer["param_groups"][0]  # auxiliary modules have a group of their own, added after the network's
    state = {i: optimizer["state"][i] for i in own["params"] if i in optimizer["state"]}
    return checkpoint | {
        "trainer_name": PLAIN,
        "init_args": checkpoint["init_args"] | {"plans": _without_ours(checkpoint["init_args"]["plans"])},
        "optimizer_state": {"state": state, "param_groups": [own]},
        "logging": {k: v for k, v in checkpoint["logging"].items() if not k.startswith(LOG_PREFIX)},
    }


def _largest_difference(results: Path, model: Path, folds: Sequence[int | str], checkpoint: str) -> float:
    """Of the logits that the two models give for a volume of noise larger than one patch, all folds together.

    On the CPU, where the same network gives the same logits to the last bit.
    """
    logits = []
    for folder in (results, model):
        predictor = nnUNetPredictor(
            use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), tuple(folds), checkpoint)
        configuration = predictor.configuration_manager
        channels = determine_num_input_channels(predictor.plans_manager, configuration, predictor.dataset_json)
        *shape, last = configuration.patch_size
        shape = [channels, *([1] if len(configuration.patch_size) == 2 else []), *shape, last + last // 4]
        volume = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        logits.append(predictor.predict_logits_from_preprocessed_data(volume).float())
    return float((logits[0] - logits[1]).abs().max())


def _record(results: Path, trainer: str, configuration: str, plans: str, sources: dict[str, Path]) -> dict[str, Any]:
    return {
        "trainer": trainer,
        "plans": plans,
        "configuration": configuration,
        "settings": json.loads((results / "plans.json").read_text()).get(KEY, {}),
        "checkpoints": {
            f"{fold}/{path.name}": {"sha256_of_the_original": pooch.file_hash(str(path), "sha256")}
            for fold, path in sources.items()
        },
        "versions": {package: version(package) for package in ("nnunet-dg", "nnunetv2", "torch")},
        "logits": f"{PLAIN}'s equal {trainer}'s",
    }


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content, indent=4))


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
