"""Bezier maps: values of the specification, agreement with NumPy's interpolation, and properties."""

import numpy as np
import pytest
import torch

from nnunet_dg.mechanisms.bezier import bezier_curve, bezier_map, look_up, look_up_groups

INNER = torch.tensor([[0.2, 0.7], [0.6, 0.9]])
VALUES = torch.tensor([0, 0.25, 0.5, 0.75, 1])


def test_hand_values():
    """The example of the specification for SLAug, increasing and inverted."""
    expected = torch.tensor([0, 0.535750, 0.783798, 0.920126, 1])
    torch.testing.assert_close(bezier_map(VALUES, INNER), expected, atol=1e-6, rtol=0)
    expected = torch.tensor([1, 0.858093, 0.657359, 0.378363, 0])
    torch.testing.assert_close(bezier_map(VALUES, INNER, inverted=True), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("inverted", [False, True])
def test_agrees_with_numpy_on_a_finer_curve(inverted):
    torch.manual_seed(0)
    values = torch.randn(200, dtype=torch.float64) * 3 + 1
    upper = torch.rand(2)
    inner = torch.stack([upper * torch.rand(2), upper])
    low, span = values.min(), values.max() - values.min()
    control = [(0, 0), *inner.tolist(), (1, 1)]
    t = np.linspace(0, 1, 100_001)
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    x, y = (sum(w * c[axis] for w, c in zip(weights, control, strict=True)) for axis in (0, 1))
    expected = low + span * np.interp((values - low) / span, x, y[::-1] if inverted else y)
    torch.testing.assert_close(bezier_map(values, inner, inverted), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("inner", [[[0, 0], [0, 0]], [[0, 1], [0, 1]], [[1, 0], [1, 1]], [[0.3, 0.3], [0.3, 0.3]]])
def test_maps_are_monotone_and_keep_the_range_also_with_degenerate_curves(inner):
    values = torch.linspace(-2, 3, 500)
    inner = torch.tensor(inner, dtype=torch.float32)
    increasing, decreasing = bezier_map(values, inner), bezier_map(values, inner, inverted=True)
    assert (increasing.diff() >= 0).all()
    assert (decreasing.diff() <= 0).all()
    assert increasing[[0, -1]].tolist() == pytest.approx([-2, 3], abs=1e-3)
    assert decreasing[[0, -1]].tolist() == pytest.approx([3, -2], abs=1e-3)


def test_points_on_the_diagonal_are_the_identity():
    values = torch.rand(3, 4)
    torch.testing.assert_close(bezier_map(values, torch.tensor([[0.1, 0.1], [0.7, 0.7]])), values)


def test_a_curve_begins_and_ends_at_its_outer_control_points():
    control = torch.tensor([[0.1, 0.9], [0.2, 0.3], [0.4, 0.4], [0.8, 0.7]])
    x, y = bezier_curve(control)
    torch.testing.assert_close(torch.stack([x, y], 1)[[0, -1]], control[[0, -1]].double())


@pytest.mark.parametrize("values", [torch.tensor([2.0]), torch.full((3, 3), -1.0)])
def test_constant_values_stay(values):
    assert torch.equal(bezier_map(values, INNER, inverted=True), values)


def test_values_beyond_the_ends_get_the_value_of_the_end():
    x, y = torch.tensor([0.0, 1, 1, 2]), torch.tensor([5.0, 6, 7, 9])
    assert look_up(torch.tensor([-3.0, 0, 0.5, 1.5, 2, 10]), x, y).tolist() == [5, 5, 5.5, 8, 9, 9]


def test_groups_are_looked_up_in_their_own_curves():
    torch.manual_seed(0)
    values, group = torch.cat([torch.rand(300), torch.tensor([0.0, 1.0, 0.5])]), torch.randint(5, (303,))
    x = torch.rand(5, 20).sort().values
    x[0] = 0.5  # a jump
    y = torch.rand(5, 20)
    result = look_up_groups(values, group, x, y)
    for k in range(5):
        assert torch.equal(result[group == k], look_up(values[group == k], x[k], y[k]))
