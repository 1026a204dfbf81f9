import math

import numpy as np
import pytest
import torch
from monai.metrics.utils import get_edge_surface_distance
from scipy.ndimage import gaussian_filter
from surface_distance import (
    compute_average_surface_distance,
    compute_robust_hausdorff,
    compute_surface_dice_at_tolerance,
    compute_surface_distances,
)

from nnunet_dg.evaluation.metrics import METRICS, case_metrics, mask_metrics


def plates(lower: slice, upper: slice) -> tuple[np.ndarray, np.ndarray]:
    """Two plates of 40 x 40 voxels that face each other."""
    masks = np.zeros((2, 14, 48, 48), bool)
    masks[0, lower, 4:44, 4:44] = masks[1, upper, 4:44, 4:44] = True
    return masks[0], masks[1]


def test_two_plates_by_hand():
    """Two plates, two voxels thick and three voxels apart along an axis of 2 mm, for example [0, 4] and [6, 10] mm.

    Each plate has one face at 2 mm and one at 6 mm from the other plate; the four rims are spread evenly in between. So
    the 95th percentile is 6 mm, and the average is 4 mm. Of the two faces of 40 x 40 mm and four rims of 40 x 4 mm,
    the near face and an eighth of the rims are within 2.5 mm.
    """
    prediction, truth = plates(slice(2, 4), slice(5, 7))
    metrics = mask_metrics(prediction, truth, (2, 1, 1), tolerance_mm=2.5)
    assert metrics["dice"] == 0
    assert metrics["hd95_mm"] == 6
    assert metrics["assd_mm"] == pytest.approx(4, rel=1e-6)
    assert metrics["nsd"] == pytest.approx((1600 + 80) / (3200 + 640), abs=0.02)
    assert metrics["truth_voxels"] == metrics["predicted_voxels"] == 3200


def test_overlap_by_hand():
    prediction, truth = np.zeros((2, 4, 4, 4), bool)
    prediction[1, :3, 0], truth[1, 1:4, 0] = True, True  # two of three and three voxels
    assert mask_metrics(prediction, truth, (1, 1, 1))["dice"] == pytest.approx(2 * 2 / 6)


def test_spacing_belongs_to_its_own_axis():
    """The plates' 95th percentile is the distance of their far faces along the axis that separates them."""
    prediction, truth = plates(slice(2, 4), slice(5, 7))
    for axis in range(3):
        spacing = np.full(3, 1.5)
        spacing[axis] = 4
        moved = (np.moveaxis(mask, 0, axis) for mask in (prediction, truth))
        assert mask_metrics(*moved, spacing)["hd95_mm"] == 12


def random_masks(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal(shape), 2)
    other = field + 0.3 * gaussian_filter(rng.standard_normal(shape), 2)
    return field > 0.02, other > 0.02


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("shape", "spacing"), [((20, 24, 16), (1, 1, 1)), ((12, 30, 28), (3.3, 0.7, 0.5)), ((40, 36), (0.4, 1.5))]
)
def test_agrees_with_a_second_library(shape, spacing, seed):
    """DeepMind's surface-distance, which also weights by area."""
    prediction, truth = random_masks(shape, seed)
    metrics = mask_metrics(prediction, truth, spacing, tolerance_mm=1.1)
    distances = compute_surface_distances(truth, prediction, spacing)
    assert metrics["hd95_mm"] == pytest.approx(compute_robust_hausdorff(distances, 95), rel=1e-5)
    assert metrics["nsd"] == pytest.approx(compute_surface_dice_at_tolerance(distances, 1.1), rel=1e-5)
    both = compute_average_surface_distance(distances)
    areas = distances["surfel_areas_gt"].sum(), distances["surfel_areas_pred"].sum()
    assert metrics["assd_mm"] == pytest.approx(np.average(both, weights=areas), rel=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MONAI calls its own deprecated functions
@pytest.mark.parametrize(("shape", "spacing"), [((12, 30, 28), (3.3, 0.7, 0.5)), ((40, 36), (0.4, 1.5))])
def test_surfaces_are_those_that_monai_measures_in_the_whole_image(shape, spacing):
    """Small labels, labels at the border, a region, and an ignored part, each measured here in its own box."""
    fields = [gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2) for seed in (1, 2)]
    truth, prediction = (np.digitize(f, np.quantile(fields[0], (0.4, 0.8, 0.98))) for f in (fields[0], sum(fields)))
    labels = {"small": [3], "large": [1], "region": [2, 3], "all": [0, 1]}
    metrics = case_metrics(prediction, truth, spacing, labels, ignore=2, tolerance_mm=1.1)
    for name, integers in labels.items():
        masks = [torch.from_numpy(np.isin(array, integers) & (truth != 2)) for array in (prediction, truth)]
        edges, distances, areas = get_edge_surface_distance(*masks, spacing=spacing, use_subvoxels=True, symmetric=True)
        weights = torch.cat([area[edge] for area, edge in zip(areas, edges, strict=True)]).double()
        both = torch.cat(distances).double()
        assert metrics[name]["assd_mm"] == pytest.approx(float((both * weights).sum() / weights.sum()), rel=1e-6)
        assert metrics[name]["nsd"] == pytest.approx(float(weights[both <= 1.1].sum() / weights.sum()), rel=1e-6)
        assert metrics[name]["truth_voxels"] == masks[1].sum()


@pytest.mark.parametrize("shape", [(9, 12, 10), (12, 10)])
def test_equal_masks_are_perfect_and_swapping_them_changes_nothing(shape):
    first, second = random_masks(shape, 7)
    spacing = (2.0, 1.0, 0.5)[-len(shape) :]
    perfect = mask_metrics(first, first, spacing)
    assert [perfect[name] for name in METRICS] == [1, 0, 0, 1]
    metrics, swapped = mask_metrics(first, second, spacing), mask_metrics(second, first, spacing)
    assert [metrics[name] for name in METRICS] == pytest.approx([swapped[name] for name in METRICS])


def test_a_mask_that_touches_the_border_is_closed_there():
    full = np.ones((6, 6, 6), bool)
    assert mask_metrics(full, full, (1, 1, 1))["nsd"] == 1
    inner = np.zeros_like(full)
    inner[1:-1, 1:-1, 1:-1] = True
    assert mask_metrics(full, inner, (1, 1, 1))["hd95_mm"] == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_one_voxel_thick_is_measured_in_2d(axis):
    first, second = random_masks((30, 20), 3)
    flat = mask_metrics(first, second, (0.8, 1.3))
    spacing = np.insert([0.8, 1.3], axis, 999)  # nnU-Net's spacing for the missing axis of 2-D images
    assert mask_metrics(np.expand_dims(first, axis), np.expand_dims(second, axis), spacing) == flat


def test_two_empty_masks_have_no_metrics():
    empty = np.zeros((4, 5, 6), bool)
    metrics = mask_metrics(empty, empty, (1, 1, 1))
    assert all(math.isnan(metrics[name]) for name in METRICS)


@pytest.mark.parametrize("predicted", [True, False])
def test_one_empty_mask_gives_the_worst_possible_values(predicted):
    empty, full = np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    full[1, 1, 1] = True
    masks = (full, empty) if predicted else (empty, full)
    metrics = mask_metrics(*masks, (4, 3, 0))  # a box of 12 x 12 x 0 mm
    assert metrics["dice"] == metrics["nsd"] == 0
    assert metrics["hd95_mm"] == metrics["assd_mm"] == pytest.approx(12 * math.sqrt(2))


def test_labels_regions_and_the_ignore_label():
    truth = np.array([[0, 1, 1, 2, 2, 3]])
    prediction = np.array([[0, 1, 2, 2, 2, 1]])
    labels = {"one": [1], "any": [1, 2]}
    metrics = case_metrics(prediction, truth, (1, 1), labels, ignore=3)
    assert metrics["one"]["dice"] == pytest.approx(2 * 1 / (1 + 2))  # the last voxel is ignored
    assert metrics["any"]["dice"] == 1
    assert case_metrics(prediction, truth, (1, 1), labels)["one"]["dice"] == pytest.approx(2 * 1 / (2 + 2))


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"prediction's shape is \(2, 3\), the truth's \(3, 2\)"):
        case_metrics(np.zeros((2, 3)), np.zeros((3, 2)), (1, 1), {"one": [1]})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, float])
def test_masks_of_any_type_have_the_metrics_of_boolean_ones(dtype):
    truth, prediction = np.zeros((2, 9, 9, 9), bool)
    truth[2:7, 2:7, 2:7], prediction[3:8, 2:7, 1:7] = True, True
    assert mask_metrics(prediction.astype(dtype), truth.astype(dtype), (1, 1, 1)) == mask_metrics(
        prediction, truth, (1, 1, 1)
    )
