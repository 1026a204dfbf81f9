import json
from dataclasses import asdict

import pytest

from nnunet_dg.tinymig import TinyMIGSettings

TERMS = ("segmentation_teacher", "segmentation_styled", "segmentation", "alignment", "consistency")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"loss_weights": [1, 1, 0.5, 0.5]},
            r"loss_weights must be 5 positive numbers, of segmentation_teacher, .*got \[1, 1",
        ),
        ({"loss_weights": [1, 1, 0.5, 0.5, -1]}, "loss_weights must be 5 positive numbers"),
        ({"loss_weights": [1, 1, 0.5, 0.5, float("nan")]}, "loss_weights"),
        ({"loss_weights": [0, 1, 0.5, 0.5, 0.5]}, "loss_weights must be 5 positive.*to leave one out, ablate its part"),
        ({"loss_weights": 1}, "loss_weights"),
        ({"ablate": ["fdce"]}, r"ablate must be a list of ufdm, cdc, lra, amplitude, .*got \['fdce'\]"),
        ({"ablate": "ufdm"}, "ablate must be a list"),
        ({"ablate": [["ufdm"]]}, "ablate must be a list"),
        ({"teacher_scaling": "none"}, "teacher_scaling must be one of minmax, zscore, timm, or null; got 'none'"),
        ({"teacher": "random:nnunet"}, "'random:nnunet' has no architecture"),
        (
            {"statistics": "maxstyle"},
            "statistics must be one of ufdm, mixstyle, crossnorm, crossnorm_channels, dsu; got 'maxstyle'",
        ),
        ({"divergence": "l1"}, "divergence must be one of kl, mse, js; got 'l1'"),
        ({"adapter_width": 0}, "adapter_width must be a whole number in \[1, 4096\], or null; got 0"),
        ({"adapter_width": 10**50}, "adapter_width must be"),
        ({"loss_weights": [1, 1, 1, 1, 10**400]}, "loss_weights must be 5 positive numbers.*each at most 1e"),
        ({"alignment_scale": "none"}, "alignment_scale must be one of free, paper; got 'none'"),
        ({"adapter_width": True}, "adapter_width"),
        ({"teacher": ""}, "teacher must be a name or a path, or null; got ''"),
        ({"teacher": "random:"}, "teacher must be a name"),
        ({"weights": 3}, "weights must be a name or a path"),
        (
            {"teacher": "random:anatomix", "weights": "a.pth"},
            "'random:anatomix' has random weights: leave weights unset",
        ),
        ({"architecture": "x"}, "architecture must be left unset: it is read from the model folder"),
    ],
)
def test_what_is_not_accepted_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        TinyMIGSettings(**given)


def test_what_comes_back_from_json_is_the_same():
    settings = TinyMIGSettings(loss_weights=(1, 2, 3, 4, 5), ablate=("lra", "cdc"))
    assert TinyMIGSettings(**json.loads(json.dumps(asdict(settings)))) == settings


def test_the_papers_weights_are_the_default():
    assert TinyMIGSettings().term_weights() == dict(zip(TERMS, (1, 1, 0.5, 0.5, 0.5), strict=True))


@pytest.mark.parametrize(
    ("ablate", "gone"),
    [
        (["ufdm"], {"segmentation_styled", "consistency"}),
        (["cdc"], {"consistency"}),
        (["lra"], {"alignment"}),
        (["co_training"], {"segmentation_teacher"}),
        (["amplitude", "phase", "channel_refiner"], set()),
    ],
)
def test_what_is_left_out_leaves_its_terms_out(ablate, gone):
    assert set(TERMS) - set(TinyMIGSettings(ablate=ablate).term_weights()) == gone


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({}, True),
        ({"ablate": ["lra", "co_training"]}, True),
        ({"ablate": ["lra", "co_training"], "statistics": "dsu"}, False),
        ({"ablate": ["lra", "co_training", "ufdm"]}, False),
        ({"ablate": ["ufdm", "cdc", "lra"]}, True),
    ],
)
def test_a_teacher_is_needed_where_something_asks_it(given, needed):
    assert TinyMIGSettings(**given).needs_teacher is needed
