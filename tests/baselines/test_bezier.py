"""Bezier curves of intensities: values of the specification, a naive solution by bisection, and properties."""

import pytest
import torch

from nnunet_dg.baselines.bezier import bezier, restyled


@pytest.mark.parametrize(
    ("strength", "x", "expected"),
    [
        (0.5, [-1, -0.75, -0.5, 0, 0.5, 1], [-1, -0.484318, -0.229425, 0, 0.229425, 1]),
        (0.75, [-1, -0.75, -0.5, 0, 0.5, 1], [-1, -0.322845, -0.124537, 0, 0.124537, 1]),
    ],
)
def test_hand_values_of_increasing_curves(strength, x, expected):
    """Example BEZ-1 of the specification."""
    actual = bezier(torch.tensor(x, dtype=torch.float32), torch.tensor(strength))
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(0.0, [-1, 0.75, 0.5, 0, -0.5, -1]), (0.5, [-1, 0.484318, 0.229425, 0, -0.229425, -1])],
)
def test_hand_values_of_decreasing_curves_with_the_background_put_back(strength, expected):
    """Example BEZ-2 of the specification."""
    x = torch.tensor([[[-1, -0.75, -0.5, 0, 0.5, 1]]])
    actual = restyled(x, torch.tensor([strength]), torch.tensor([True]))
    torch.testing.assert_close(actual[0, 0], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


def by_bisection(x, v):
    """The curve from its control points, with the parameter at which it has the abscissa x."""

    def at(u, points):
        b = (1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3
        return sum(weight * point for weight, point in zip(b, points, strict=True))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle, (-1, -v, v, 1)) < x else (low, middle)
    return at(low, (-1, v, -v, 1))


@pytest.mark.parametrize("v", [0.0, 0.2, 1 / 3, 0.5, 0.75, 0.9])
def test_agrees_with_the_control_points_and_bisection(v):
    x = torch.linspace(-1, 1, 81)
    expected = torch.tensor([by_bisection(float(value), v) for value in x])
    torch.testing.assert_close(bezier(x, torch.tensor(v)), expected, rtol=0, atol=2e-6)
    actual = bezier(x.double(), torch.tensor(v).double())
    assert actual.dtype == torch.float64
    assert (actual.diff() > 0).all()
    torch.testing.assert_close(actual, -actual.flip(0))


@pytest.mark.parametrize("spatial", [(6, 5), (4, 3, 5)])
def test_every_sample_has_its_curve_and_every_channel_its_range(spatial):
    torch.manual_seed(0)
    images = 100 * torch.randn(3, 2, *spatial) + 7
    strength, decreasing = torch.tensor([0.0, 0.5, 0.75]), torch.tensor([False, False, True])
    out = restyled(images, strength, decreasing)
    for sample in range(3):
        for channel in range(2):
            image, new = images[sample, channel].flatten(), out[sample, channel].flatten()
            low, high = image.min(), image.max()
            unit = 2 * (image - low) / (high - low) - 1
            curve = torch.tensor([by_bisection(float(value), float(strength[sample])) for value in unit])
            expected = low + ((-curve if decreasing[sample] else curve) + 1) / 2 * (high - low)
            expected = torch.where(image == low, low, expected)
            torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-2)


def test_constant_images_and_their_dtype_stay():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        images = torch.full((1, 1, 4, 4), 5.0, dtype=dtype)
        out = restyled(images, torch.tensor([0.5]), torch.tensor([True]))
        assert torch.equal(out, images)
        assert out.dtype == dtype
