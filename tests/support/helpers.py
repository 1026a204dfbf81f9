"""Helpers of several tests: paths of the optional test data, and random weights for anatomix."""

import os
from pathlib import Path

import pytest
import torch
from plain_anatomix import random_weights

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("NNUNET_DG_TEST_DATA", REPOSITORY.parent / "shared"))


def shared(*parts: str) -> Path:
    """A file of the optional test data. Skips the test if it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)} are neither in NNUNET_DG_TEST_DATA nor next to the repository")
    return path


@pytest.fixture(scope="session")
def anatomix_weights() -> dict[str, torch.Tensor]:
    return random_weights()
