"""The network in nnU-Net's plans, read by nnU-Net itself, which also converts plans from before nnU-Net 2.5."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


def planned_architecture(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import`` of a configuration, inherited or its own.

    Args:
        plans: The content of ``plans.json``; not changed.
        configuration: For example ``"3d_fullres"``.

    Raises:
        KeyError, RuntimeError, TypeError, ValueError: As nnU-Net raises them, where the plans have no such
            configuration or do not describe a network.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnU-Net says that it converts old plans
        manager = PlansManager(deepcopy(plans)).get_configuration(configuration)
    architecture: dict[str, Any] = manager.configuration["architecture"]
    return architecture
