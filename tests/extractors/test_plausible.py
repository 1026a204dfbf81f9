"""Tensors that cannot be weights of a trained network are described."""

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
        ("w", torch.tensor([1.0, float("nan")]), "has values that are not finite"),
        ("w", torch.tensor([1.0, float("-inf")]), "has values that are not finite"),
        ("w", torch.tensor([1.0, -1e30]), "has a value of 1.0e+30; weights must be at most 1e+06"),
        ("w", torch.tensor([1e300], dtype=torch.float64), "has a value of 1.0e+300; weights must be at most 1e+06"),
        ("w.running_var", torch.tensor([1.0, -0.1]), "has a negative variance"),
        ("w.running_var", torch.tensor([1e13]), "has a value of 1.0e+13; weights must be at most 1e+12"),
        ("w", torch.tensor([1, 2]), "has int64 values; they must be floating point"),
        ("w", torch.tensor([True]), "has bool values; they must be floating point"),
        ("w", torch.tensor([1j]), "has complex64 values; they must be floating point"),
        ("w", torch.empty(3, device="meta"), "is a meta tensor, which has a shape but no content"),
        ("w", torch.eye(3).to_sparse(), "is a sparse or nested tensor; it must be dense"),
    ],
)
def test_implausible_tensors_are_named_with_the_reason(name, tensor, problem):
    assert implausible(GOOD | {name: tensor}) == f"{name} {problem}"
