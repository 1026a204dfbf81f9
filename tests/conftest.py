import os
from pathlib import Path

import pytest
import torch
from capability_table import CapabilityTable

pytest.register_assert_rewrite("trainer_contract", "export_contract", "nnunet_model")
pytest_plugins = ["helpers", "nnunet_host"]


def pytest_addoption(parser):
    parser.addoption("--capabilities", type=Path, metavar="FILE", help="write the table of what each trainer can do")


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # workers that spin for each other's cores are slower than one thread each
    if path := config.getoption("--capabilities"):
        config.pluginmanager.register(CapabilityTable(path))
