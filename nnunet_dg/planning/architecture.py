"""Reading the network from plans through nnU-Net, which also converts plans written before nnU-Net 2.5."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


def planned_architecture(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import`` of a configuration, including inherited ones.

    Args:
        plans: Content of ``plans.json``; not changed.
        configuration: Configuration name, for example ``"3d_fullres"``.

    Raises:
        KeyError, RuntimeError, TypeError, ValueError: Raised by nnU-Net if the plans lack the configuration or do not
            describe a network.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnU-Net warns when it converts old plans
        manager = PlansManager(deepcopy(plans)).get_configuration(configuration)
    architecture: dict[str, Any] = manager.configuration["architecture"]
    return architecture
