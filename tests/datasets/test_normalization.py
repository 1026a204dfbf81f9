"""Normalization for CT and MR: values by hand, comparison with nnU-Net's own, and lookup by nnU-Net."""

from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization, ZScoreNormalization

from nnunet_dg.datasets.normalization import AnyModalityNormalization, any_modality, fitted_to_ct
from nnunet_dg.host import look_up
from nnunet_dg.outside import ZERO_IS_THE_MEAN

OF_CT = {"mean": 90.0, "std": 40.0, "percentile_00_5": -40.0, "percentile_99_5": 280.0}


def normalize(scheme, image, seg=None, masked=False):
    return scheme(use_mask_for_norm=masked, intensityproperties=OF_CT).run(image.copy(), seg)


def test_ct_is_clipped_to_the_papers_range_and_then_z_scored():
    """-2000, 0 and 4000 become -1024, 0 and 1024: mean 0, deviation 1024 * sqrt(2 / 3)."""
    result = normalize(AnyModalityNormalization, np.array([-2000.0, 0.0, 4000.0]))
    assert result == pytest.approx([-np.sqrt(1.5), 0, np.sqrt(1.5)], rel=1e-6)
    assert result.dtype == np.float32


@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e-3])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_mr_gets_exactly_nnunets_z_score(scale, dtype):
    image = (scale * np.random.default_rng(0).gamma(2, 1, (8, 9, 10)) + 1).astype(dtype)
    assert np.array_equal(normalize(AnyModalityNormalization, image), normalize(ZScoreNormalization, image))


def test_masks_are_respected_as_in_nnunet():
    rng = np.random.default_rng(0)
    image, seg = rng.gamma(2, 100, (8, 9, 10)).astype(np.float32), np.zeros((8, 9, 10), np.int8)
    image[:3], seg[:3] = 0, -1
    ours = normalize(AnyModalityNormalization, image, seg, masked=True)
    assert np.array_equal(ours, normalize(ZScoreNormalization, image, seg, masked=True))
    assert (ours[:3] == 0).all()


def test_an_mr_image_saturates_with_nnunets_ct_scheme_but_not_with_ours():
    image = np.random.default_rng(0).gamma(3, 300, (16, 16, 16)).astype(np.float32)  # 0 to about 3000
    by_nnunet, by_us = normalize(CTNormalization, image), normalize(AnyModalityNormalization, image)
    assert (by_nnunet == by_nnunet.max()).mean() > 0.8
    assert (by_us == by_us.max()).sum() == 1


def test_an_mr_image_with_a_few_dark_voxels_is_not_treated_as_ct():
    """Spline resampling rings: registered MR images have some negative values."""
    image = np.random.default_rng(0).gamma(4, 300, (16, 16, 16)).astype(np.float32)
    image.flat[:10] = -150
    assert np.array_equal(normalize(AnyModalityNormalization, image), normalize(ZScoreNormalization, image))
    image.flat[:100] = -150  # 2.4 %: air or fat
    clipped = np.clip(image, -1024, 1024)
    assert np.array_equal(normalize(AnyModalityNormalization, image), normalize(ZScoreNormalization, clipped))


def test_a_constant_image_becomes_zero():
    image = np.full((4, 5), -500.0, np.float32)
    assert np.array_equal(normalize(AnyModalityNormalization, image), np.zeros((4, 5), np.float32))


def test_nnunet_finds_the_scheme_by_name():
    package = "nnunetv2.preprocessing.normalization"
    assert look_up(package, "AnyModalityNormalization") is AnyModalityNormalization
    assert look_up(package, "ZScoreNormalization") is ZScoreNormalization


def test_only_ct_and_z_score_normalization_are_replaced():
    schemes = ["CTNormalization", "ZScoreNormalization", "NoNormalization", "RGBTo01Normalization"]
    assert any_modality(schemes) == ["AnyModalityNormalization"] * 2 + schemes[2:]
    assert "AnyModalityNormalization" in ZERO_IS_THE_MEAN


def test_channels_fitted_to_ct_are_named_with_their_range():
    manager = SimpleNamespace(normalization_schemes=["CTNormalization", "ZScoreNormalization"])
    dataset = {"channel_names": {"0": "CT", "1": "PET"}}
    plans = {"foreground_intensity_properties_per_channel": {"0": OF_CT, "1": OF_CT}}
    told = fitted_to_ct(plans, manager, dataset)
    assert told.startswith("CTNormalization clips channel CT to [-40, 280] of the training images.")
    assert "PET" not in told
    assert fitted_to_ct({}, manager, {}).startswith("CTNormalization clips channel 0 to a range")
    assert fitted_to_ct(plans, SimpleNamespace(normalization_schemes=["ZScoreNormalization"]), dataset) == ""
