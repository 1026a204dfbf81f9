"""Signatures of nnU-Net that we call or override. A test fails if a release of nnU-Net changes one of them."""

import inspect
from importlib.metadata import entry_points

import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners as resenc
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

PLANNER = (
    "dataset_name_or_id", "gpu_memory_target_in_gb", "preprocessor_name", "plans_name", "overwrite_target_spacing",
    "suppress_transpose",
)  # fmt: skip
TRAINER = ("plans", "configuration", "fold", "dataset_json", "device")
FROZEN = {
    nnUNetTrainer: TRAINER,
    nnUNetTrainer.build_network_architecture: (
        "plans_manager", "configuration_manager", "num_input_channels", "num_output_channels",
        "enable_deep_supervision",
    ),
    nnUNetTrainer.on_train_start: ("self",),
    nnUNetTrainer.configure_optimizers: ("self",),
    nnUNetTrainer.initialize: ("self",),
    nnUNetTrainer.get_dataloaders: ("self",),
    nnUNetTrainer.get_tr_and_val_datasets: ("self",),
    nnUNetDataLoader.get_indices: ("self",),
    load_pretrained_weights: ("network", "fname", "verbose"),
    nnUNetTrainer.train_step: ("self", "batch"),
    nnUNetTrainer.on_train_epoch_start: ("self",),
    nnUNetTrainer.on_train_epoch_end: ("self", "train_outputs"),
    nnUNetTrainer.on_epoch_end: ("self",),
    nnUNetTrainer.load_checkpoint: ("self", "filename_or_checkpoint"),
    nnUNetTrainer.get_training_transforms: (
        "patch_size", "rotation_for_DA", "deep_supervision_scales", "mirror_axes", "do_dummy_2d_data_aug",
        "use_mask_for_norm", "is_cascaded", "foreground_labels", "regions", "ignore_label",
    ),
    nnUNetPredictor.initialize_from_trained_model_folder: (
        "self", "model_training_output_dir", "use_folds", "checkpoint_name",
    ),
    nnUNetPredictor.predict_single_npy_array: (
        "self", "input_image", "image_properties", "segmentation_previous_stage", "output_file_truncated",
        "save_or_return_probabilities",
    ),
    nnUNetPredictor.manual_initialization: (
        "self", "network", "plans_manager", "configuration_manager", "parameters", "dataset_json", "trainer_name",
        "inference_allowed_mirroring_axes",
    ),
    nnUNetPredictor.predict_logits_from_preprocessed_data: ("self", "data"),
    nnUNetPredictor.predict_sliding_window_return_logits: ("self", "input_image"),
    convert_predicted_logits_to_segmentation_with_correct_shape: (
        "predicted_logits", "plans_manager", "configuration_manager", "label_manager", "properties_dict",
        "return_probabilities", "num_threads_torch",
    ),
    determine_reader_writer_from_dataset_json: (
        "dataset_json_content", "example_file", "allow_nonmatching_filename", "verbose",
    ),
    ExperimentPlanner: PLANNER,
    resenc.nnUNetPlannerResEncM: PLANNER,
    resenc.nnUNetPlannerResEncL: PLANNER,
    resenc.nnUNetPlannerResEncXL: PLANNER,
    ExperimentPlanner.static_estimate_VRAM_usage: (
        "patch_size", "input_channels", "output_channels", "arch_class_name", "arch_kwargs", "arch_kwargs_req_import",
    ),
    ExperimentPlanner.get_plans_for_configuration: (
        "self", "spacing", "median_shape", "data_identifier", "approximate_n_voxels_dataset", "_cache",
    ),
    ExperimentPlanner.generate_data_identifier: ("self", "configuration_name"),
    ExperimentPlanner.save_plans: ("self", "plans"),
}  # fmt: skip


RENAMED = {  # in nnU-Net's repository, after 2.8.1
    nnUNetTrainer.load_checkpoint: ("self", "checkpoint"),
}


@pytest.mark.parametrize("host", FROZEN, ids=lambda host: host.__qualname__)
def test_signatures_are_unchanged(host):
    assert tuple(inspect.signature(host).parameters) in (FROZEN[host], RENAMED.get(host))


def test_the_class_lookup_has_parameters_for_folder_name_and_module():
    assert list(inspect.signature(recursive_find_python_class).parameters)[:3] == [
        "folder", "class_name", "current_module",
    ]  # fmt: skip


def test_the_log_accepts_additional_curves():
    logger = MetaLogger(None, False)
    logger.local_logger.my_fantastic_logging["ours"] = []
    logger.log("ours", 1.5, 0)
    assert logger.get_value("ours", None) == [1.5]
    assert logger.get_checkpoint()["ours"] == [1.5]


def test_the_trainer_creates_data_loaders_by_a_global_name():
    assert inspect.getsource(nnUNetTrainer.get_dataloaders).count("= nnUNetDataLoader(") == 2
    assert nnUNetTrainer.get_dataloaders.__globals__["nnUNetDataLoader"] is nnUNetDataLoader


@pytest.mark.parametrize("weights", [load_pretrained_weights, nnUNetTrainer.load_checkpoint])
def test_weights_are_loaded_by_load_state_dict(weights):
    assert ".load_state_dict(" in inspect.getsource(weights)


OURS = [e.name for e in entry_points(group="nnunetv2.trainers") if e.dist.name == "nnunet-dg"]


@pytest.mark.parametrize("ours", OURS)
def test_our_trainers_have_nnunets_constructor_arguments(ours):
    """Different arguments, or *args, make nnU-Net raise a KeyError when it writes checkpoints."""
    trainer = next(e.load() for e in entry_points(group="nnunetv2.trainers") if e.name == ours)
    assert tuple(inspect.signature(trainer).parameters) == TRAINER


def test_planners_call_the_memory_estimate_through_self():
    for planner in (ExperimentPlanner, resenc.ResEncUNetPlanner):
        assert "self.static_estimate_VRAM_usage(" in inspect.getsource(planner.get_plans_for_configuration)
