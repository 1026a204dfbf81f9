import json
from dataclasses import asdict, replace

import pytest
from nnunet_model import write_model

from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.extractors.weights import WeightsError
from nnunet_dg.nnunet.settings import record, recorded, refuse_other_settings, resolve


def test_the_plans_come_before_the_class_and_the_rest_stays():
    defaults = DropGenSettings(p=0.75, layer="final")
    plans = {"nnunet_dg": {"dropgen": {"p": 0.25}}}
    assert resolve(plans, "dropgen", defaults) == replace(defaults, p=0.25)
    assert resolve({}, "dropgen", defaults) == defaults


def test_what_a_planner_counted_is_no_setting():
    plans = {"nnunet_dg": {"planned_for": {"3d": {"extractor": "anatomix", "p": 0.25}}}}
    assert resolve(plans, "dropgen", DropGenSettings()) == DropGenSettings()


def test_what_is_recorded_survives_json_and_resolves_to_itself():
    settings = DropGenSettings(extractor="mind", p=0.25, masking="structured")
    plans = {}
    record(plans, "dropgen", settings)
    assert resolve(json.loads(json.dumps(plans)), "dropgen", DropGenSettings()) == settings


def test_recording_keeps_what_else_is_in_the_plans():
    plans = {"plans_name": "x", "nnunet_dg": {"other": {}}}
    record(plans, "dropgen", DropGenSettings())
    assert plans["plans_name"] == "x"
    assert plans["nnunet_dg"]["other"] == {}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dropgen": {"prob": 1}}, "Unknown setting .*'prob'. Accepted are extractor, layer"),
        ({"dropgen": {"p": 2}}, r'plans\["nnunet_dg"\]\["dropgen"\]: p must be a probability in \[0, 0\.99\].*got 2'),
        ({"p": 0.5}, r'plans\["nnunet_dg"\] knows dropgen, sgcg, tinymig; got \'p\'.* below their method'),
        ({"dropgen": 0.5}, r'must look like \{"dropgen": \{setting: value\}\}'),
        ([], r'must look like \{"dropgen": \{setting: value\}\}; got \[\]'),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ValueError, match=message):
        resolve({"nnunet_dg": section}, "dropgen", DropGenSettings())


def test_settings_of_an_earlier_start_are_read_from_the_results(tmp_path):
    assert recorded(tmp_path, "dropgen", DropGenSettings()) is None
    plans = {}
    record(plans, "dropgen", DropGenSettings(p=0.25))
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    assert recorded(tmp_path, "dropgen", DropGenSettings()) == DropGenSettings(p=0.25)
    (tmp_path / "plans.json").write_text('{"nnunet_dg": {"dropg')  # while another fold writes it
    assert recorded(tmp_path, "dropgen", DropGenSettings()) is None


def test_settings_of_another_version_are_named_with_their_file(tmp_path):
    (tmp_path / "plans.json").write_text(json.dumps({"nnunet_dg": {"dropgen": {"prob": 1}}}))
    with pytest.raises(ValueError, match=r"plans\.json, of an earlier training: Unknown setting .*'prob'.* Move"):
        recorded(tmp_path, "dropgen", DropGenSettings())


def test_a_checkpoint_is_not_continued_with_other_settings():
    refuse_other_settings(DropGenSettings(), DropGenSettings())
    refuse_other_settings(DropGenSettings(weights="here"), DropGenSettings(weights="there"))
    with pytest.raises(ValueError, match=r"masking was 'channel' and is 'structured', p was 0\.5 and is 0\.25"):
        refuse_other_settings(DropGenSettings(p=0.25, masking="structured"), DropGenSettings())


def test_a_model_folder_is_needed_by_a_new_training_alone(tmp_path):
    write_model(tmp_path / "model")
    given = DropGenSettings(extractor="nnunet", weights=str(tmp_path / "model"))
    completed = given.completed()
    assert completed.architecture["input_channels"] == 1
    assert resolve({"nnunet_dg": {"dropgen": json.loads(json.dumps(asdict(completed)))}}, "dropgen", given) == completed
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    assert completed.completed() == completed
    assert given.completed(completed) == completed
    with pytest.raises(WeightsError, match="is not a trained model of nnU-Net"):
        given.completed()
    with pytest.raises(WeightsError, match="is not a trained model of nnU-Net"):  # another folder that is not there
        replace(given, weights=str(tmp_path / "other")).completed(completed)
    assert DropGenSettings(extractor="nnunet", inputs="image").completed().architecture is None  # nobody looks
    assert DropGenSettings(extractor="mind").completed() == DropGenSettings(extractor="mind", normalize="instance")


def test_a_record_from_before_normalize_existed_keeps_its_meaning_and_a_new_training_is_refused_beside_it():
    older = asdict(DropGenSettings(extractor="anatomix-dev", weights="dev.pth"))
    del older["normalize"]
    then = resolve({"nnunet_dg": {"dropgen": older}}, "dropgen", DropGenSettings())
    assert then.normalize == "instance"
    plans = {"nnunet_dg": {"dropgen": {"extractor": "anatomix-dev", "weights": "dev.pth"}}}
    now = resolve(plans, "dropgen", DropGenSettings()).completed()
    with pytest.raises(ValueError, match="normalize was 'instance' and is 'voxelwise'"):
        refuse_other_settings(now, then)
    plans["nnunet_dg"]["dropgen"]["normalize"] = "instance"
    refuse_other_settings(resolve(plans, "dropgen", DropGenSettings()).completed(), then)
    anatomix = asdict(DropGenSettings())
    del anatomix["normalize"]
    refuse_other_settings(
        DropGenSettings().completed(), resolve({"nnunet_dg": {"dropgen": anatomix}}, "dropgen", DropGenSettings())
    )
