"""B-spline fields: values of the specification, agreement with a loop, and properties."""

import itertools

import pytest
import torch

from nnunet_dg.mechanisms.bspline import bspline_basis, bspline_kernel, spline_field


def test_hand_values_of_quadratic_kernels():
    """Example IPA-1 of the specification."""
    assert bspline_kernel(2).tolist() == [0.25, 0.75, 0.75, 0.25]
    half = [0.0625, 0.1875, 0.375, 0.625, 0.75]
    assert bspline_kernel(4).tolist() == [*half, *half[::-1]]


def test_hand_value_of_a_field():
    """The field of example IPA-2: the middle nine of 26 values."""
    control = torch.tensor([[0.5, -1, 2, 0, 1]], dtype=torch.float64) / 2.5
    expected = [-0.2125, -0.1375, 0.05, 0.35, 0.525, 0.575, 0.5, 0.3, 0.175]
    torch.testing.assert_close(spline_field(control, (4,), (9,))[0].tolist(), expected)


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize(("spacing", "size"), [(2, 7), (5, 16), (7, 4), (1, 6)])
def test_the_basis_of_a_grid_that_covers_the_patch_adds_up_to_one(spacing, size, degree):
    basis = bspline_basis(-(-size // spacing) + 2, spacing, size, degree)
    torch.testing.assert_close(basis.sum(1), torch.ones(size, dtype=torch.float64))
    assert basis.min() >= 0


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 6)])
def test_agrees_with_a_loop_over_control_points_and_voxels(shape):
    torch.manual_seed(0)
    spacing = (2, 3, 4)[: len(shape)]
    control = torch.randn(2, *(4, 3, 5)[: len(shape)], dtype=torch.float64)
    result = spline_field(control, spacing, shape)
    assert result.shape == (2, *shape)
    kernels = [bspline_kernel(distance).tolist() for distance in spacing]
    starts = [
        ((points - 1) * distance + len(kernel) - size) // 2
        for points, distance, kernel, size in zip(control.shape[1:], spacing, kernels, shape, strict=True)
    ]
    for voxel in itertools.product(*map(range, shape)):
        value = torch.zeros(2, dtype=torch.float64)
        for point in itertools.product(*map(range, control.shape[1:])):
            weight = 1.0
            for axis, kernel in enumerate(kernels):
                place = voxel[axis] + starts[axis] - spacing[axis] * point[axis]
                weight *= kernel[place] if 0 <= place < len(kernel) else 0
            value += weight * control[(slice(None), *point)]
        torch.testing.assert_close(result[(slice(None), *voxel)], value)


def test_half_precision_is_computed_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        field = spline_field(torch.ones(1, 4, 4, dtype=torch.bfloat16), (2, 2), (4, 4))
    assert field.dtype == torch.float32
    torch.testing.assert_close(field, torch.ones(1, 4, 4))
