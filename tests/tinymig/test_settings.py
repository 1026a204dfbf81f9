"""Settings of TinyMIG: errors, defaults, and the parts that they disable."""

import json
from dataclasses import asdict

import pytest

from nnunet_dg.tinymig import TinyMIGSettings
from nnunet_dg.training.plans import as_json, resolve

TERMS = ("segmentation_teacher", "segmentation_styled", "segmentation", "alignment", "consistency")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss_weights": [1, 1, 0.5, 0.5]},
            r"loss_weights must be 5 positive numbers, for segmentation_teacher, .*got \[1, 1",
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
            {"statistics": "adain"},
            "statistics must be one of ufdm, mixstyle, crossnorm, crossnorm_channels, dsu, trid, efdm, maxstyle; got",
        ),
        ({"at": "norm"}, "at must be one of stage, pre-activation; got 'norm'"),
        ({"divergence": "l1"}, "divergence must be one of kl, mse, js, kl_one_way; got 'l1'"),
        ({"adapter_width": 0}, "adapter_width must be a whole number in \[1, 4096\], or null; got 0"),
        ({"adapter_width": 10**50}, "adapter_width must be"),
        ({"loss_weights": [1, 1, 1, 1, 10**400]}, "loss_weights must be 5 positive numbers.*each at most 1e"),
        ({"alignment_scale": "none"}, "alignment_scale must be one of free, paper; got 'none'"),
        ({"alignment": "kd"}, "alignment must be one of lra, cwd, at, attnfd, mlkd; got 'kd'"),
        ({"styled_stages": []}, "styled_stages must be a list of different encoder stages, numbered from 0, or null"),
        ({"aligned_stages": [0, 0]}, "aligned_stages must be a list of different encoder stages"),
        ({"ablate": ["lra"], "alignment": "at"}, "alignment 'at' has no effect, since ablate has 'lra'"),
        ({"ablate": ["lra"], "aligned_stages": [0]}, r"aligned_stages \(0,\) has no effect, since ablate has 'lra'"),
        ({"ablate": ["ufdm"], "styled_stages": [0]}, r"styled_stages \(0,\) has no effect, since ablate has 'ufdm'"),
        (
            {"ablate": ["ufdm"], "statistics": "maxstyle"},
            "statistics 'maxstyle' has no effect, since ablate has",
        ),
        ({"ablate": ["ufdm"], "at": "pre-activation"}, "at 'pre-activation' has no effect, since ablate has 'ufdm'"),
        ({"ablate": ["ufdm"], "divergence": "js"}, "divergence 'js' has no effect, since ablate has 'ufdm'"),
        ({"ablate": ["cdc"], "divergence": "js"}, "divergence 'js' has no effect, since ablate has 'cdc'"),
        ({"ablate": ["lra"], "alignment_scale": "paper"}, "alignment_scale 'paper' has no effect, since ablate has"),
        ({"ablate": ["co_training"], "adapter_width": 8}, "adapter_width 8 has no effect, since ablate has 'co_tr"),
        (
            {"ablate": ["lra"], "loss_weights": [1, 1, 0.5, 2, 0.5]},
            r"loss_weights has 2.* for alignment, which ablate \('lra',\) disables. Its weight must be the default",
        ),
        ({"ablate": ["phase"], "alignment": "cwd"}, "ablate 'phase' has no effect on alignment 'cwd'"),
        ({"alignment_scale": "paper", "alignment": "at"}, "alignment_scale 'paper' has no effect on alignment 'at'"),
        ({"ablate": ["co_training"], "alignment": "mlkd"}, "'mlkd' needs the teacher's logits, but ablate has"),
        ({"aligned_stages": [1], "alignment": "mlkd"}, r"aligned_stages \(1,\) has no effect on alignment 'mlkd'"),
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
def test_errors_name_the_setting_and_the_accepted_values(options, message):
    with pytest.raises(ValueError, match=message):
        TinyMIGSettings(**options)


def test_settings_survive_json():
    settings = TinyMIGSettings(loss_weights=(1, 2, 3, 4, 0.5), ablate=("cdc",), styled_stages=(0,), alignment="cwd")
    assert TinyMIGSettings(**json.loads(json.dumps(asdict(settings)))) == settings


def test_the_papers_weights_are_the_default():
    assert TinyMIGSettings().term_weights() == dict(zip(TERMS, (1, 1, 0.5, 0.5, 0.5), strict=True))


@pytest.mark.parametrize(
    ("ablate", "disabled"),
    [
        (["ufdm"], {"segmentation_styled", "consistency"}),
        (["cdc"], {"consistency"}),
        (["lra"], {"alignment"}),
        (["co_training"], {"segmentation_teacher"}),
        (["amplitude", "phase", "channel_refiner"], set()),
    ],
)
def test_ablated_parts_have_no_loss_terms(ablate, disabled):
    assert set(TERMS) - set(TinyMIGSettings(ablate=ablate).term_weights()) == disabled


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, True),
        ({"ablate": ["lra", "co_training"]}, True),
        ({"ablate": ["lra", "co_training"], "statistics": "dsu"}, False),
        ({"ablate": ["lra", "co_training", "ufdm"]}, False),
        ({"ablate": ["ufdm", "cdc", "lra"]}, True),
    ],
)
def test_a_teacher_is_needed_if_an_enabled_part_uses_it(options, needed):
    assert TinyMIGSettings(**options).needs_teacher is needed


def test_settings_that_an_earlier_version_recorded_mean_the_same():
    new = ("alignment", "styled_stages", "aligned_stages")
    recorded = {name: value for name, value in as_json(TinyMIGSettings(at="pre-activation")).items() if name not in new}
    assert resolve({"nnunet_dg": {"tinymig": recorded}}, TinyMIGSettings()) == TinyMIGSettings(at="pre-activation")
