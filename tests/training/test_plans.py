"""Settings in the plans: precedence, errors, suggestions, misplaced sections, and comparison with earlier ones."""

import json
from contextlib import suppress
from dataclasses import asdict, fields, replace

import pytest
from nnunet_model import write_model

from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors.weights import WeightsError
from nnunet_dg.sgcg import SgCGSettings
from nnunet_dg.tinymig import TinyMIGSettings
from nnunet_dg.training.plans import record, refuse_misplaced, refuse_other_settings, resolve, unused


def test_settings_in_the_plans_take_precedence_and_others_keep_the_defaults():
    defaults = DropGenSettings(p=0.75, layer="final")
    plans = {"nnunet_dg": {"dropgen": {"p": 0.25}}}
    assert resolve(plans, defaults) == replace(defaults, p=0.25)
    assert resolve({}, defaults) == defaults


def test_the_settings_that_a_planner_assumed_are_not_used():
    plans = {"nnunet_dg": {"planned_for": {"3d": {"extractor": "anatomix", "p": 0.25}}}}
    assert resolve(plans, DropGenSettings()) == DropGenSettings()


def test_recorded_settings_survive_json_and_resolve_to_themselves():
    settings = DropGenSettings(extractor="mind", p=0.25, masking="structured")
    plans = {}
    record(plans, settings)
    assert resolve(json.loads(json.dumps(plans)), DropGenSettings()) == settings


def test_recording_keeps_other_contents_of_the_plans():
    plans = {"plans_name": "x", "nnunet_dg": {"other": {}}}
    record(plans, DropGenSettings())
    assert plans["plans_name"] == "x"
    assert plans["nnunet_dg"]["other"] == {}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dropgen": {"prob": 1}}, "Unknown setting .*'prob'.* Accepted are extractor, layer"),
        ({"dropgen": {"p": 2}}, r'plans\["nnunet_dg"\]\["dropgen"\]: p must be a probability in \[0, 0\.99\].*got 2'),
        ({"p": 0.5}, r'Unknown section in plans\["nnunet_dg"\]: \'p\'.* Accepted are dropgen, .*sgcg, '),
        ({"dropgen": 0.5}, r'must look like \{"dropgen": \{setting: value\}\}'),
        ([], r'must look like \{"dropgen": \{setting: value\}\}; got \[\]'),
    ],
)
def test_errors_name_the_mistake_and_the_accepted_values(section, message):
    with pytest.raises(ValueError, match=message):
        resolve({"nnunet_dg": section}, DropGenSettings())


@pytest.mark.parametrize(
    ("section", "suggested"),
    [
        ({"dropgem": {}}, "dropgen"),
        ({"dropgen": {"P": 0.5}}, "p"),
        ({"dropgen": {"image_scalling": "none"}}, "image_scaling"),
    ],
)
def test_a_similar_name_is_suggested(section, suggested):
    with pytest.raises(SettingsError, match=f"Did you mean '{suggested}'\\?"):
        resolve({"nnunet_dg": section}, DropGenSettings())


ALL_SETTINGS = {"dropgen": DropGenSettings(), "sgcg": SgCGSettings(), "tinymig": TinyMIGSettings()}
EVERY_SETTING = [(method, field.name) for method, settings in ALL_SETTINGS.items() for field in fields(settings)]


@pytest.mark.parametrize(("method", "name"), EVERY_SETTING)
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 10**50, -(10**50), 10**400, [10**50], {"x": float("nan")}], ids=str
)
def test_numbers_that_are_not_finite_or_too_large_are_refused_by_name(method, name, value):
    with pytest.raises(SettingsError, match=f"{method}.*{name}"):
        resolve({"nnunet_dg": {method: {name: value}}}, ALL_SETTINGS[method])


@pytest.mark.parametrize(("method", "name"), EVERY_SETTING)
def test_values_of_any_type_are_accepted_or_raise_a_settings_error(method, name):
    for value in (True, None, 0, -1, 0.5, "", "x", [], [[]], {}, {"a": [None]}, ["x", 1]):
        with suppress(SettingsError):
            settings = resolve({"nnunet_dg": {method: {name: value}}}, ALL_SETTINGS[method])
            assert isinstance(settings, type(ALL_SETTINGS[method]))


@pytest.mark.parametrize("key", ["dropgen", "sgcg", "nnunet-dg", "nnUNet_dg", "NNUNET_DG", "nnunetdg", "nnunet dg"])
def test_misplaced_settings_are_refused(key):
    configuration = {"patch_size": [16] * 3, "spacing": [1.0] * 3, "architecture": {}, "batch_dice": False}
    plans = {"plans_name": "x", "dataset_name": "y", "configurations": {"3d_fullres": configuration, "2d": {}}}
    refuse_misplaced(plans | {"nnunet_dg": {}})
    with pytest.raises(SettingsError, match=rf'plans\["{key}"\] is not read'):
        refuse_misplaced(plans | {key: {"dropgen": {"p": 0.5}}})
    plans["configurations"]["2d"][key] = {"p": 0.5}
    with pytest.raises(SettingsError, match=rf'plans\["configurations"\]\["2d"\]\["{key}"\] is not read'):
        refuse_misplaced(plans)


@pytest.mark.parametrize("key", ["nnunet_gd", "nnunet_dgg", "nnunt_dg", "nnunet-d_g"])
def test_a_misspelled_section_with_a_method_in_it_is_refused(key):
    with pytest.raises(SettingsError, match=rf'plans\["{key}"\] is not read'):
        refuse_misplaced({key: {"dropgen": {"p": 0.5}}})


@pytest.mark.parametrize("key", ["nnunet_version", "nnunet_tta", "nnunet", "timing", "tiny", "nnunet_d", "drop", "gen"])
@pytest.mark.parametrize("value", ["2.6", 1, None, {"p": 0.5}, ["dropgen"], {"nnunet": {}}], ids=str)
def test_keys_of_other_packages_are_ignored(key, value):
    configuration = {"patch_size": [16] * 3, key: value}
    plans = {key: value, "configurations": {"3d_fullres": configuration}}
    refuse_misplaced(plans)
    with pytest.raises(SettingsError, match="is not read"):  # which shows that the plans were looked at
        refuse_misplaced(plans | {"nnunet_gd": {"dropgen": {"p": 0.5}}})


def test_our_section_below_a_configuration_is_refused():
    with pytest.raises(SettingsError, match=r'\["3d_fullres"\]\["nnunet_dg"\] is not read'):
        refuse_misplaced({"configurations": {"3d_fullres": {"nnunet_dg": {"dropgen": {"p": 0.5}}}}})


def test_settings_of_methods_that_a_trainer_does_not_use_are_named():
    plans = {"nnunet_dg": {"dropgen": {}, "sgcg": {}, "planned_for": {}}}
    assert unused(plans, ["dropgen"]) == ["sgcg"]
    assert unused({}, []) == []


def test_a_training_is_not_resumed_with_other_settings():
    refuse_other_settings(DropGenSettings(), DropGenSettings())
    refuse_other_settings(DropGenSettings(weights="here"), DropGenSettings(weights="there"))
    with pytest.raises(ValueError, match=r"masking was 'channel' and is 'structured', p was 0\.5 and is 0\.25"):
        refuse_other_settings(DropGenSettings(p=0.25, masking="structured"), DropGenSettings())


def test_a_model_folder_is_needed_only_by_a_new_training(tmp_path):
    write_model(tmp_path / "model")
    settings = DropGenSettings(extractor="nnunet", weights=str(tmp_path / "model"))
    completed = settings.completed()
    assert completed.architecture["input_channels"] == 1
    assert resolve({"nnunet_dg": {"dropgen": json.loads(json.dumps(asdict(completed)))}}, settings) == completed
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    assert completed.completed() == completed
    assert settings.completed(completed) == completed
    with pytest.raises(WeightsError, match="is not a trained model of nnU-Net"):
        settings.completed()
    with pytest.raises(WeightsError, match="is not a trained model of nnU-Net"):  # another folder, which is missing
        replace(settings, weights=str(tmp_path / "other")).completed(completed)
    assert DropGenSettings(extractor="nnunet", inputs="image").completed().architecture is None  # it is not read
    assert DropGenSettings(extractor="mind").completed() == DropGenSettings(extractor="mind", normalize="instance")


def test_settings_recorded_before_normalize_existed_keep_their_meaning_and_differ_from_new_ones():
    recorded = asdict(DropGenSettings(extractor="anatomix-dev", weights="dev.pth"))
    del recorded["normalize"]
    earlier = resolve({"nnunet_dg": {"dropgen": recorded}}, DropGenSettings())
    assert earlier.normalize == "instance"
    plans = {"nnunet_dg": {"dropgen": {"extractor": "anatomix-dev", "weights": "dev.pth"}}}
    now = resolve(plans, DropGenSettings()).completed()
    with pytest.raises(ValueError, match="normalize was 'instance' and is 'voxelwise'"):
        refuse_other_settings(now, earlier)
    plans["nnunet_dg"]["dropgen"]["normalize"] = "instance"
    refuse_other_settings(resolve(plans, DropGenSettings()).completed(), earlier)
    anatomix = asdict(DropGenSettings())
    del anatomix["normalize"]
    refuse_other_settings(
        DropGenSettings().completed(), resolve({"nnunet_dg": {"dropgen": anatomix}}, DropGenSettings())
    )
