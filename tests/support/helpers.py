"""What several tests need: where the optional real data lie, and weights for anatomix that anybody can have."""

import os
from pathlib import Path

import pytest
import torch
from plain_anatomix import random_weights

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("NNUNET_DG_TEST_DATA", REPOSITORY.parent / "shared"))


def shared(*parts: str) -> Path:
    """A file of the optional test data, or a skip that says what is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)} are not in NNUNET_DG_TEST_DATA or beside the repository")
    return path


@pytest.fixture(scope="session")
def anatomix_weights() -> dict[str, torch.Tensor]:
    return random_weights()
