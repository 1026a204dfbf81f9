"""Exporting a model whose network is nnU-Net's own, for people who have only nnU-Net."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nnunetv2
import pooch
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dg.checkpoints import (
    check_checkpoint_name,
    check_folds,
    check_trainer,
    safe_checkpoint,
)
from nnunet_dg.errors import DataError, SettingsError
from nnunet_dg.files import read_json, replacing, validate, write_json
from nnunet_dg.formats import Dataset, PlannedConfiguration, TrainedPlans, WholeCheckpoint
from nnunet_dg.host import results_folder, trainer_class
from nnunet_dg.names import did_you_mean
from nnunet_dg.plugin import defines
from nnunet_dg.training.loss_curves import LOG_PREFIX
from nnunet_dg.training.plans import KEY

PLAIN = "nnUNetTrainer"
RECORD = "exported_by_nnunet-dg.json"
COPIED = ("progress.png", "validation/summary.json")  # from each fold, as in nnU-Net's own export
COPIED_CROSS_VALIDATION = ("summary.json", "postprocessing.pkl", "postprocessing.json")
ZIP = ".zip"
NO_FOLDERS = {ending for _, endings, _ in shutil.get_unpack_formats() for ending in endings} - {ZIP}
NO_FOLDERS |= {".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".pth", ".pt"}


class ExportError(DataError, RuntimeError):
    """Nothing was exported; the message says why."""


def export(
    dataset: str | int,
    configuration: str,
    trainer: str,
    output: Path,
    plans: str = "nnUNetPlans",
    folds: Sequence[int | str] = (0, 1, 2, 3, 4),
    checkpoint: str = "checkpoint_final.pth",
) -> Path:
    """Write a trained model as a model of plain nnUNetTrainer, after checking that both give the same logits.

    Args:
        dataset: Dataset name or number.
        configuration: Configuration name, for example ``"3d_fullres"``.
        trainer: Name of the trainer that trained the model.
        output: A folder, for ``nnUNetv2_predict_from_modelfolder -m``, or a file ``*.zip``, for
            ``nnUNetv2_install_pretrained_model_from_zip``. Must not exist.
        plans: Name of the plans.
        folds: Fold numbers, or ``"all"``.
        checkpoint: File name of the checkpoint in each fold.

    Returns:
        The output.

    Raises:
        ExportError: The model is missing or damaged, or plain nnU-Net cannot run it.
        DataError: A file of the model cannot be read, see `safe_checkpoint`.
        HostError: nnUNet_results is not set.
        SettingsError: The output, a fold, the dataset or the checkpoint's name is not accepted.
        OSError: The output cannot be written. Nothing is left at its path.
    """
    _check_output(output)
    check_checkpoint_name(checkpoint)
    names = check_folds(folds)
    results = results_folder(dataset, trainer, plans, configuration)
    _refuse_other_networks(trainer)
    _check_complete(results, names, checkpoint)
    _refuse_other_preprocessing(results, configuration)
    _refuse_other_architecture(results, configuration)
    sources = {f"fold_{fold}": results / f"fold_{fold}" / checkpoint for fold in names}
    output.parent.mkdir(parents=True, exist_ok=True)
    with _folder_next_to(output) as temporary:
        model = temporary / results.parent.name / f"{PLAIN}__{plans}__{configuration}"
        _write_plain_model(results, model, sources)
        print(f"Comparing the logits of {trainer} and {PLAIN} on the CPU ({len(names)} folds)", flush=True)
        _compare(results, model, names, checkpoint, trainer)
        write_json(model / RECORD, _record(results, trainer, configuration, plans, sources), indent=4)
        if output.suffix.lower() == ZIP:
            _zip(temporary, output)
        else:
            model.rename(output)
    return output


def _check_output(output: Path) -> None:
    """Refuse an output that exists, or whose extension belongs to another type of file."""
    name = output.name.lower()
    if wrong := [ending for ending in sorted(NO_FOLDERS) if name.endswith(ending)]:
        raise SettingsError(
            f"The output must be a folder, or a file that ends in {ZIP}; got {output}, which ends in {wrong[0]}."
        )
    if output.is_symlink() or output.exists():
        raise ExportError(f"{output} exists already. Remove it, or choose another output.")


@contextmanager
def _folder_next_to(output: Path) -> Iterator[Path]:
    """A temporary folder on the output's disk, so that the last step is a rename, which is atomic."""
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name[:40]}.", suffix=".partial", dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _zip(folder: Path, output: Path) -> None:
    with replacing(output) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))


def _write_plain_model(results: Path, model: Path, sources: dict[str, Path]) -> None:
    """Write the files that nnUNetTrainer leaves in its results folder and that nnU-Net's own export includes."""
    model.mkdir(parents=True)
    plans = _read_plans(results)
    write_json(model / "plans.json", _without_ours(plans), indent=4)
    for fold, source in sources.items():
        checkpoint = safe_checkpoint(source, WholeCheckpoint)
        check_trainer(results, plans, {source: checkpoint})
        (model / fold).mkdir()
        _save(_plain_checkpoint(_folded(checkpoint)), model / fold / source.name)
    crossval = f"crossval_results_folds_{folds_tuple_to_string([fold.removeprefix('fold_') for fold in sources])}"
    copied = ["dataset.json", "dataset_fingerprint.json"]
    copied += [f"{fold}/{name}" for fold in sources for name in COPIED]
    copied += [f"{crossval}/{name}" for name in COPIED_CROSS_VALIDATION]
    for name in copied:
        _copy(results / name, model / name)


def _read_plans(results: Path) -> dict[str, Any]:
    return dict(read_json(results / "plans.json", TrainedPlans, "Restore the file: nnU-Net writes it when it trains."))


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    """Like `torch.save`, but a full disk raises the operating system's error, which `torch.save` replaces."""
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def _check_complete(results: Path, folds: Sequence[str], checkpoint: str) -> None:
    if not results.is_dir():
        trained = [path.name for path in results.parent.glob("*__*__*") if path.is_dir()]
        raise ExportError(
            f"There is no folder {results}.{did_you_mean(results.name, trained)} Choose another `dataset`, "
            f"`configuration`, `trainer` or `plans`, or train this model."
        )
    wanted = ["plans.json", "dataset.json", *(f"fold_{fold}/{checkpoint}" for fold in folds)]
    if missing := [name for name in wanted if not (results / name).is_file()]:
        present = sorted(str(path.relative_to(results)) for path in results.glob("fold_*/*.pth"))
        raise ExportError(
            f"{results} lacks {', '.join(missing)}. It has {', '.join(present) or 'no checkpoint'}. Choose other "
            f"`folds` or another `checkpoint`, or train what is missing."
        )
    read_json(results / "dataset.json", Dataset, "Restore the file: nnU-Net writes it when it trains.")


def _refuse_other_networks(trainer: str) -> None:
    methods = getattr(trainer_class(trainer), "methods", ())
    changing = [type(m).__name__ for m in methods if m.changes_network and not m.folds_at_export]
    if changing:
        raise ExportError(
            f"{trainer}'s network is not nnU-Net's own: {' and '.join(changing)} changes it, so inference needs "
            f"nnunet-dg. Share it with nnUNetv2_export_model_to_zip, and install nnunet-dg where it is used."
        )


def _refuse_other_preprocessing(results: Path, configuration: str) -> None:
    """Refuse plans that name preprocessing classes or functions which nnU-Net's own source does not define."""
    content = _configuration(results, configuration)
    names = dict.fromkeys(content["normalization_schemes"], "normalization")
    names |= {content["preprocessor_name"]: "preprocessor"}
    functions = (content["resampling_fn_data"], content["resampling_fn_probabilities"])
    names |= dict.fromkeys(functions, "resampling function")
    folder = Path(next(iter(nnunetv2.__path__)), "preprocessing")
    if other := [f"the {what} {name}" for name, what in names.items() if not defines(str(folder), name)]:
        raise ExportError(
            f"{results} needs {' and '.join(other)} to predict, which plain nnU-Net does not have. Share it with "
            f"nnUNetv2_export_model_to_zip, and install the package that has it, such as nnunet-dg, where it is used; "
            f"or train with plans of nnU-Net's own planner."
        )


def _refuse_other_architecture(results: Path, configuration: str) -> None:
    """Refuse plans whose network is not a class of nnU-Net's own package."""
    network = PlansManager(_read_plans(results)).get_configuration(configuration).network_arch_class_name
    if network.startswith("nnunet_dg."):
        raise ExportError(
            f"{results} needs the network {network}, which plain nnU-Net does not have. Share it with "
            f"nnUNetv2_export_model_to_zip, and install nnunet-dg where it is used; or train with plans of another "
            f"planner."
        )


def _configuration(results: Path, name: str) -> PlannedConfiguration:
    """A configuration of the plans, with inherited values."""
    path, plans = results / "plans.json", _read_plans(results)
    try:
        return validate(PlansManager(plans).get_configuration(name).configuration, PlannedConfiguration)
    except (DataError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).rstrip(".")
        raise DataError(f"{path}: nnU-Net cannot read configuration {name}: {reason}. Restore the file.") from error


def _without_ours(plans: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plans.items() if key != KEY}


def _folded(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with the weights of the planned network, if a method changes the network in a foldable way.

    The state of the optimizer does not fit to other weights, and is left out.
    """
    trainer: Any = trainer_class(checkpoint["trainer_name"])
    folding = [method for method in getattr(trainer, "methods", ()) if method.folds_at_export]
    if not folding:
        return checkpoint
    given = checkpoint["init_args"]
    plans = PlansManager(given["plans"])
    configuration = plans.get_configuration(given["configuration"])
    channels = determine_num_input_channels(plans, configuration, given["dataset_json"])
    outputs = plans.get_label_manager(given["dataset_json"]).num_segmentation_heads
    network = trainer.build_network_architecture(plans, configuration, channels, outputs, False)
    network.load_state_dict(checkpoint["network_weights"])
    for method in folding:
        method.fold_network(network)
    group = _group_of_network(checkpoint["optimizer_state"]["param_groups"])
    group = group | {"params": list(range(len(list(network.parameters()))))}
    return checkpoint | {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [group]},
    }


def _group_of_network(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """One group with the parameters of the network. Auxiliary modules have a group of their own, added after these.

    A recipe may give the encoder another rate than the decoder: each group then has its ``rate``.
    """
    of_network = [group for group in groups if "rate" in group] or groups[:1]
    rest = {name: value for name, value in of_network[-1].items() if name != "rate"}
    return rest | {"params": [i for group in of_network for i in group["params"]]}


def _plain_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint as nnUNetTrainer writes it: one parameter group, its own curves, plans without our settings."""
    optimizer = checkpoint["optimizer_state"]
    own = _group_of_network(optimizer["param_groups"])
    state = {i: optimizer["state"][i] for i in own["params"] if i in optimizer["state"]}
    return checkpoint | {
        "trainer_name": PLAIN,
        "init_args": checkpoint["init_args"] | {"plans": _without_ours(checkpoint["init_args"]["plans"])},
        "optimizer_state": {"state": state, "param_groups": [own]},
        "logging": {k: v for k, v in checkpoint["logging"].items() if not k.startswith(LOG_PREFIX)},
    }


def _compare(results: Path, model: Path, folds: Sequence[str], checkpoint: str, trainer: str) -> None:
    """Refuse a model whose logits change.

    Both models predict a volume of noise larger than one patch, with all folds together, on the CPU, where equal
    networks give bit-identical logits.
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
    if not all(bool(output.isfinite().all()) for output in logits):
        raise ExportError(f"{results} gives logits that are not finite. Nothing was exported; train it again.")
    if difference := float((logits[0] - logits[1]).abs().max()):
        raise ExportError(
            f"Plain {PLAIN} and {trainer} give different logits: they differ by up to {difference:g}. Nothing was "
            f"exported; please report this with the plans.json of {results}."
        )


def _record(results: Path, trainer: str, configuration: str, plans: str, sources: dict[str, Path]) -> dict[str, Any]:
    return {
        "trainer": trainer,
        "plans": plans,
        "configuration": configuration,
        "settings": _read_plans(results).get(KEY, {}),
        "checkpoints": {
            f"{fold}/{path.name}": {"sha256_of_the_original": pooch.file_hash(str(path), "sha256")}
            for fold, path in sources.items()
        },
        "versions": {package: version(package) for package in ("nnunet-dg", "nnunetv2", "torch")},
        "logits": f"{PLAIN}'s equal {trainer}'s",
    }


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
