"""Label maps and smooth fields by their statistics."""

import math

import pytest
import torch
from scipy.ndimage import label as components

from nnunet_dg.synthesis import Draws, scenes
from nnunet_dg.synthesis.ellipsoids import paint_ellipsoid, squared_radius
from nnunet_dg.synthesis.outside import outside
from nnunet_dg.synthesis.regions import competing, layers
from nnunet_dg.synthesis.scenes import draw_scene
from nnunet_dg.synthesis.smooth import smooth_fields
from nnunet_dg.synthesis.tubes import curve, paint_tube
from nnunet_dg.synthesis.warps import warp

SHAPES = [(40, 32), (24, 20, 28)]


def test_numbers_depend_on_seed_and_key_only():
    def numbers(seed, key):
        draws = Draws(seed, key)
        return (draws.uniform(0, 1), draws.whole(0, 10**6), draws.normal((1,)).item(), draws.rand((1,)).item())

    assert numbers(1, 2) == numbers(1, 2)
    for other in ((2, 2), (1, 3), (2, 1)):  # CPU generators of PyTorch read 32 bits of a seed only
        assert not {*numbers(1, 2)} & {*numbers(*other)}


def test_numbers_are_in_their_ranges():
    draws = Draws(0)
    assert {draws.whole(2, 4) for _ in range(60)} == {2, 3, 4}
    uniform = torch.tensor([draws.uniform(-1, 3) for _ in range(2000)])
    assert uniform.min() >= -1
    assert uniform.max() < 3
    assert uniform.mean() == pytest.approx(1, abs=0.1)
    assert sum(draws.chance(0.3) for _ in range(2000)) / 2000 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("shape", SHAPES)
def test_fields_are_standardized_and_as_smooth_as_their_scale(shape):
    correlations = []
    for scale in (3.0, 12.0):
        fields = smooth_fields(shape, scale, 8, Draws(0))
        assert fields.shape == (8, *shape)
        torch.testing.assert_close(fields.flatten(1).mean(1), torch.zeros(8), atol=1e-5, rtol=0)
        torch.testing.assert_close(fields.flatten(1).std(1, correction=0), torch.ones(8), atol=1e-4, rtol=0)
        correlations.append((fields[:, 3:] * fields[:, :-3]).mean().item())
    assert correlations[0] < 0.5 < correlations[1]
    assert abs((fields[0] * fields[1]).mean()) < 0.7  # independent, of few degrees of freedom


@pytest.mark.parametrize("shape", SHAPES)
def test_competing_regions_are_those_of_the_largest_field(shape, monkeypatch):
    fields = {}

    def recorded(*arguments):
        fields[len(fields)] = smooth_fields(*arguments)
        return fields[len(fields) - 1]

    monkeypatch.setattr("nnunet_dg.synthesis.regions.smooth_fields", recorded)
    labels = competing(shape, 5, Draws(0))
    draws = Draws(0)  # the same numbers again
    coarse = smooth_fields(shape, draws.uniform(10, 24), 5, draws)
    fine = smooth_fields(shape, draws.uniform(4, 10), 5, draws)
    bias = 0.3 * draws.normal((5, *[1] * len(shape)))
    assert torch.equal(coarse, fields[0])
    assert torch.equal(labels, (coarse + draws.uniform(0.2, 0.8) * fine + bias).argmax(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_are_nested(shape):
    """Along a continuous field, labels change by one step: neighbors differ by few labels, though there are many."""
    steps = []
    for key in range(10):
        labels = layers(shape, 6, Draws(0, key))
        assert labels.min() >= 0
        assert labels.max() <= 5
        steps.append((labels[1:] - labels[:-1]).abs())
    changes = torch.cat([s[s > 0] for s in steps])
    assert (changes == 1).float().mean() > 0.7


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_radii_are_those_along_rotated_semi_axes(shape):
    dims, found = len(shape), squared_radius(shape, 3, 6, Draws(0, 4))
    draws = Draws(0, 4)  # the same numbers again
    axes = torch.tensor([draws.uniform(3, 6) for _ in shape])
    rotation = torch.linalg.qr(torch.randn(dims, dims, generator=draws.host)).Q
    center = torch.tensor([draws.uniform(0, size - 1) for size in shape])
    places = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in shape], indexing="ij"), -1)
    along = (places - center) @ rotation  # coordinates along the semi-axes
    torch.testing.assert_close(found, (along / axes).square().sum(-1), rtol=1e-4, atol=1e-4)


def test_ellipsoids_have_every_direction():
    """The longest axis of a uniform ellipse, from its second moments."""
    angles = []
    for key in range(200):
        inside = torch.nonzero(squared_radius((64, 64), 3, 10, Draws(0, key)) <= 1).float()
        if len(inside) > 50:
            longest = torch.linalg.eigh(torch.cov(inside.T)).eigenvectors[:, 1]
            angles.append(torch.atan2(longest[0], longest[1]).item() % math.pi)
    counts = torch.histc(torch.tensor(angles), 4, 0, math.pi)
    assert (counts > 0.12 * len(angles)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_ellipsoid_is_connected_and_of_its_size(shape):
    for key in range(10):
        inside = squared_radius(shape, 3, 6, Draws(0, key)) <= 1
        assert components(inside)[1] == 1
        for axis in range(len(shape)):  # its bounding box is at most the largest diameter
            extent = inside.movedim(axis, 0).flatten(1).any(1).sum().item()
            assert extent <= 13
        radii = squared_radius(shape, 3, 6, Draws(0, key))
        along = radii.flatten().sort().values
        assert along[0] < 0.12  # the center is within the volume


def test_ellipsoids_have_semi_axes_of_3_to_14_voxels(monkeypatch):
    sizes = []

    def recorded(shape, smallest, largest, draws):
        sizes.append((smallest, largest))
        return squared_radius(shape, smallest, largest, draws)

    monkeypatch.setattr("nnunet_dg.synthesis.ellipsoids.squared_radius", recorded)
    paint_ellipsoid(torch.zeros(16, 16, dtype=torch.long), 1, Draws(0))
    assert sizes == [(3, 14)]


def test_ellipsoids_have_a_shell_half_of_the_time():
    empty = torch.zeros(48, 48, dtype=torch.long)
    painted = [set(paint_ellipsoid(empty, 5, Draws(0, key)).unique().tolist()) for key in range(60)]
    assert all(labels <= {0, 5, 6} and 5 in labels for labels in painted)
    assert sum(6 in labels for labels in painted) / 60 == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tube_is_what_is_near_its_curve(shape):
    labels = paint_tube(torch.zeros(shape, dtype=torch.long), 3, Draws(0))
    draws = Draws(0)
    points = torch.tensor(curve(shape, draws))
    radius = draws.uniform(1.5, 4)
    places = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in shape], indexing="ij"), -1)
    near = torch.cdist(places.reshape(-1, len(shape)), points).amin(1).reshape(shape) <= radius
    assert 0 < (labels == 3).sum() < labels.numel() / 2
    assert ((labels == 3) != near).float().mean() < 1e-3


def test_the_outside_varies_from_little_to_most():
    fractions = torch.tensor([outside((40, 40), Draws(0, key)).float().mean() for key in range(40)])
    assert fractions.min() < 0.1
    assert fractions.max() > 0.4


@pytest.mark.parametrize("shape", SHAPES)
def test_a_warp_moves_labels_by_its_deviation_and_makes_none(shape):
    labels = (torch.arange(shape[0]) // 4).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous() * 7
    assert torch.equal(warp(labels, 0.0, 8.0, Draws(0)), labels)
    warped = warp(labels, 1.5, 8.0, Draws(0))
    assert set(warped.unique().tolist()) <= set(labels.unique().tolist())
    assert 0.1 < (warped != labels).float().mean() < 0.6


@pytest.mark.parametrize("shape", SHAPES)
def test_scenes_have_several_labels_and_sometimes_an_outside(shape):
    scenes = [draw_scene(shape, Draws(0, key)) for key in range(30)]
    assert all(s.labels.min() >= 0 and s.labels.max() < s.count for s in scenes)
    assert sum(len(s.labels.unique()) for s in scenes) / 30 > 4
    assert 0.2 < sum((s.labels == 0).any().item() for s in scenes) / 30 < 0.8
    assert scenes[0].textures.shape == (3, *shape)


def test_scenes_have_parts_as_often_as_the_recipe_says(monkeypatch):
    calls = {}

    def record(name):
        original = getattr(scenes, name)

        def part(*arguments):
            calls.setdefault(name, []).append(arguments)
            return original(*arguments)

        monkeypatch.setattr(scenes, name, part)

    for name in ("layers", "paint_ellipsoid", "paint_tube", "warp", "outside"):
        record(name)
    number = 300
    for key in range(number):
        draw_scene((8, 8), Draws(0, key))
    assert {name: len(found) / number for name, found in calls.items()} == {
        "layers": pytest.approx(0.5 + 0.4, abs=0.12),  # everywhere, and within a part of the regions
        "paint_ellipsoid": pytest.approx(2, abs=0.25),
        "paint_tube": pytest.approx(0.4, abs=0.1),
        "warp": 1,
        "outside": pytest.approx(0.5, abs=0.1),
    }
    deviations = [arguments[1] for arguments in calls["warp"]]
    assert sum(deviations) / number == pytest.approx(0.75, abs=0.1)
