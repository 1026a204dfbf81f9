"""JiGen: vectors of the specification, tiles as a loop, the orders that are drawn, and its terms."""

import itertools
import math

import numpy as np
import pytest
import torch
from plain_student import PlainStudent, a_batch
from torch import nn

from nnunet_dg.baselines.jigen import JiGen, distant_orders, grid_of, reordered
from nnunet_dg.errors import SettingsError
from nnunet_dg.hooks import Tap
from nnunet_dg.method import Step


def test_hand_value_of_reordered_tiles():
    image = torch.arange(16).reshape(1, 1, 4, 4)
    expected = [[8, 9, 0, 1], [12, 13, 4, 5], [10, 11, 2, 3], [14, 15, 6, 7]]
    assert reordered(image, (2, 2), [(2, 0, 3, 1)])[0, 0].tolist() == expected


def test_hand_value_of_distant_orders():
    assert distant_orders(4, 5) == ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0), (0, 2, 3, 1))


def test_hand_value_of_the_loss():
    student, training = a_training(orders=2)
    training.draw = lambda samples: torch.tensor([0, 2])
    training.head.forward = lambda features: torch.tensor([[2.0, 0, 1], [0, 0, 3]]).double()
    terms = training.losses(Step(student, the_batch(), 0))
    assert 0.7 * terms["jigsaw"].item() == pytest.approx(0.175885, abs=1e-6)
    assert training.weights(0)["jigsaw"] == 0.7


@pytest.mark.parametrize(
    ("shape", "grid"), [((7, 9), (3, 3)), ((9, 11), (3, 3)), ((3, 8, 10), (1, 3, 3)), ((4, 5, 6), (2, 2, 2))]
)
def test_tiles_are_those_of_a_loop(shape, grid):
    torch.manual_seed(0)
    data, count = torch.rand(2, 3, *shape), math.prod(grid)
    order = torch.randperm(count).tolist()
    corners = list(itertools.product(*(range(parts) for parts in grid)))
    edges = [[size * i // parts for i in range(parts + 1)] for size, parts in zip(shape, grid, strict=True)]
    expected = data.clone()
    for place, tile in zip(corners, (corners[number] for number in order), strict=True):
        ranges = [range(edge[i], edge[i + 1]) for i, edge in zip(place, edges, strict=True)]
        for voxel in itertools.product(*ranges):
            moved = (
                v - voxels.start + min(edge[t], edge[-1] - len(voxels))
                for v, voxels, edge, t in zip(voxel, ranges, edges, tile, strict=True)
            )
            expected[(1, slice(None), *voxel)] = data[(1, slice(None), *moved)]
    assert torch.equal(reordered(data, grid, [range(count), order]), expected)


@pytest.mark.parametrize(("shape", "grid"), [((64, 65), (3, 3)), ((5, 16, 17), (1, 3, 3)), ((5, 7, 6), (2, 2, 2))])
def test_no_voxel_shows_by_itself_whether_its_image_is_shuffled(shape, grid):
    tiles = math.prod(grid)
    data = torch.rand(1, 1, *shape) + 1
    shuffled = reordered(data, grid, [[*range(1, tiles), 0]])
    assert (shuffled > 0).all()  # an image in order has no zeros either
    assert (shuffled[..., -1] != data[..., -1]).all()  # none keeps its place
    assert torch.equal(reordered(data, grid, [range(tiles)]), data)


@pytest.mark.parametrize(("tiles", "count"), [(8, 31), (9, 31)])
def test_orders_differ_and_are_far_from_each_other(tiles, count):
    orders = np.array(distant_orders(tiles, count))
    assert orders.shape == (count, tiles)
    assert orders[0].tolist() == list(range(tiles))
    distances = (orders[:, None] != orders[None]).sum(-1)[~np.eye(count, dtype=bool)]
    assert distances.min() >= tiles - 2


@pytest.mark.parametrize(
    ("patch", "grid"),
    [((64, 64), (3, 3)), ((40, 56), (3, 3)), ((64, 128, 128), (2, 2, 2)), ((63, 128, 128), (1, 3, 3)),
     ((128, 20, 128), (3, 1, 3))],
)  # fmt: skip
def test_thin_patches_are_not_divided_along_their_shortest_axis(patch, grid):
    assert grid_of(patch) == grid


class Student(PlainStudent):
    """A student whose bottleneck is its first layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1)).double()
        self.widths, self.patch_size = [4], (9, 9)

    def tap(self, stage):
        self.taps.append(Tap(self.network[1], "output"))
        return self.taps[-1]


def the_batch():
    torch.manual_seed(1)
    return a_batch(torch.rand(2, 1, 9, 9, dtype=torch.float64), torch.randint(0, 2, (2, 1, 9, 9)).float())


def a_training(**settings):
    student = Student()
    return student, JiGen(**settings).training_module(student).double()


@pytest.mark.parametrize(("orders", "passes"), [([0, 0], 1), ([0, 3], 2)])
def test_images_are_segmented_as_they_are_and_a_second_pass_shows_shuffled_ones(orders, passes):
    student, training = a_training()
    training.draw = lambda samples: torch.tensor(orders)
    batch = the_batch()
    terms = training.losses(Step(student, batch, 0))
    assert len(student.passes) == passes
    torch.testing.assert_close(terms["segmentation"], student.loss(student.network(batch.data), batch.target))
    shown = student.passes[-1]
    assert torch.equal(shown[0], batch.data[0])
    assert torch.equal(shown[1], batch.data[1]) == (passes == 1)
    logits = training.head(student.network[:2](shown).mean((2, 3)))
    expected = sum(-logits[i].log_softmax(0)[order] for i, order in enumerate(orders)) / 2
    torch.testing.assert_close(terms["jigsaw"], expected)
    terms["jigsaw"].backward()
    assert all((parameter.grad != 0).any() for parameter in [*training.parameters(), *student.network[0].parameters()])
    assert all(parameter.grad is None for parameter in student.network[2].parameters())


def test_a_device_with_images_in_order_makes_the_pass_of_the_others():
    student, training = a_training(ordered=1.0)
    student.gathered = lambda values: torch.cat([values, values + 1])
    training.losses(Step(student, the_batch(), 0))
    assert len(student.passes) == 2
    assert torch.equal(*student.passes)


def test_nine_tenths_of_the_samples_keep_their_order_and_others_get_any():
    _, training = a_training(orders=4)
    torch.manual_seed(0)
    share = torch.bincount(training.draw(20_000)) / 20_000
    assert share[0].item() == pytest.approx(0.9 + 0.1 / 5, abs=0.01)
    assert all(part.item() == pytest.approx(0.1 / 5, abs=0.004) for part in share[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"orders": 0}, r"orders must be a whole number in \[1, 1000\]; got 0"),
        ({"ordered": 1.5}, r"ordered must be a probability in \[0, 1\]; got 1.5"),
        ({"weight": 0}, "weight must be a number in"),
    ],
)
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(SettingsError, match=message):
        JiGen(**settings)
