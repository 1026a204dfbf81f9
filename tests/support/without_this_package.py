"""Run a command of nnU-Net without nnunet-dg: python without_this_package.py MODULE FUNCTION [OPTION ...]."""

import importlib
import os
import sys

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
sys.modules["nnunet_dg"] = None  # importing it fails, in spawned processes as well

if __name__ == "__main__":
    assert "nnunetv2" not in sys.modules, "this package may have changed nnU-Net"
    module, function, *options = sys.argv[1:]
    sys.argv = [function, *options]
    getattr(importlib.import_module(f"nnunetv2.{module}"), function)()
