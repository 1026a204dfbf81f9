"""Helpers for several tests: paths of the optional test data, and random weights for anatomix."""

import os
import sys
from pathlib import Path

import pytest
import torch
from plain_anatomix import random_weights

REPOSITORY = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
SHARED = Path(os.environ.get("NNUNET_DG_TEST_DATA", REPOSITORY.parent / "shared"))


def shared(*parts: str) -> Path:
    """A file of the optional test data. Skips the test if it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"test data {'/'.join(parts)} are neither in NNUNET_DG_TEST_DATA nor next to the repository")
    return path


def set_nnunets_folders(monkeypatch, folder: Path) -> None:
    """Set nnU-Net's three folders below ``folder``.

    nnU-Net 2.8 reads the environment each time, nnU-Net 2.7 once at import.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(folder / name))
        for module in [m for key, m in sys.modules.items() if key.startswith(("nnunetv2.", "nnunet_dg."))]:
            if isinstance(vars(module).get(name, folder), str | None):
                monkeypatch.setattr(module, name, str(folder / name))


@pytest.fixture(scope="session")
def anatomix_weights() -> dict[str, torch.Tensor]:
    return random_weights()
