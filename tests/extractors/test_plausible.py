"""What cannot be a trained network's weights is named."""

import pytest
import torch

from nnunet_dg.extractors.plausible import LARGEST, implausible

GOOD = {
    "a.weight": torch.randn(4, 3),
    "a.running_var": torch.tensor([0.0, 2e9]),
    "a.num_batches_tracked": torch.tensor(7),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "empty": torch.zeros(0),
}


def test_ordinary_weights_are_plausible():
    assert implausible(GOOD) == ""
    assert implausible({"w": torch.tensor([-LARGEST, LARGEST])}) == ""


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("w", torch.tensor([1.0, float("nan")]), "holds values that are not finite"),
        ("w", torch.tensor([1.0, float("-inf")]), "holds values that are not finite"),
        ("w", torch.tensor([1.0, -1e30]), "holds a value of 1.0e+30, and weights are at most 1e+06"),
        ("w", torch.tensor([1e300], dtype=torch.float64), "holds a value of 1.0e+300, and weights are at most 1e+06"),
        ("w.running_var", torch.tensor([1.0, -0.1]), "holds a negative variance"),
        ("w.running_var", torch.tensor([1e13]), "holds a value of 1.0e+13, and weights are at most 1e+12"),
        ("w", torch.tensor([1, 2]), "holds int64 values; weights are floating point"),
        ("w", torch.tensor([True]), "holds bool values; weights are floating point"),
        ("w", torch.tensor([1j]), "holds complex64 values; weights are floating point"),
        ("w", torch.empty(3, device="meta"), "is a meta tensor: it has a shape and no content"),
        ("w", torch.eye(3).to_sparse(), "is a sparse or nested tensor; accepted are dense ones"),
    ],
)
def test_others_are_named_with_the_reason(name, tensor, problem):
    assert implausible(GOOD | {name: tensor}) == f"{name} {problem}"
