"""What several tests need: where the optional real data lie, and weights in the published layout."""

import os
from pathlib import Path

import pytest
import torch

from nnunet_dg.extractors.anatomix import VARIANTS, published_layout

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("NNUNET_DG_TEST_DATA", REPOSITORY.parent / "shared"))


def shared(*parts: str) -> Path:
    """A file of the optional test data, or a skip that says what is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)} are not in NNUNET_DG_TEST_DATA or beside the repository")
    return path


def random_weights(variant: str = "anatomix", seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights in the layout of the published file, every entry drawn so that no part of the network is trivial."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in published_layout(VARIANTS[variant]).items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(1)
        elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            weights[key] = 0.5 + noise.abs()
        elif len(shape) == 1:
            weights[key] = 0.1 * noise
        else:
            weights[key] = noise * (2 / (shape[1] * 27)) ** 0.5
    return weights


@pytest.fixture(scope="session")
def anatomix_weights() -> dict[str, torch.Tensor]:
    return random_weights()
