import json
from dataclasses import replace

import pytest

from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.nnunet.settings import record, resolve


def test_the_plans_come_before_the_class_and_the_rest_stays():
    defaults = DropGenSettings(p=0.75, layer="final")
    plans = {"nnunet_dg": {"dropgen": {"p": 0.25}}}
    assert resolve(plans, "dropgen", defaults) == replace(defaults, p=0.25)
    assert resolve({}, "dropgen", defaults) == defaults


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
        ({"dropgen": {"p": 2}}, r'plans\["nnunet_dg"\]\["dropgen"\]: p must be a probability in \[0, 1\).*got 2'),
        ({"p": 0.5}, r'plans\["nnunet_dg"\] knows dropgen; got \'p\''),
        ({"dropgen": 0.5}, r'must look like \{"dropgen": \{setting: value\}\}'),
        ([], r'must look like \{"dropgen": \{setting: value\}\}; got \[\]'),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ValueError, match=message):
        resolve({"nnunet_dg": section}, "dropgen", DropGenSettings())
