"""Every public function of a method has an example in its docstring, and every example gives the printed result."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import nnunet_dg

PACKAGES = ("adaptation", "baselines", "dropgen", "mechanisms", "sgcg", "tinymig")
PURE = [f"nnunet_dg.adaptation.{name}" for name in ("calibration", "correction", "entropy", "mixing")]
MODULES = ["nnunet_dg.tensors", "nnunet_dg.step"] + [
    f"nnunet_dg.{package}.{module.name}"
    for package in PACKAGES
    for module in pkgutil.iter_modules([f"{next(iter(nnunet_dg.__path__))}/{package}"])
]


def public_functions():
    """Functions that a method's package exports or that a module of baselines or mechanisms defines."""
    for package in PACKAGES:
        imported = importlib.import_module(f"nnunet_dg.{package}")
        for name in getattr(imported, "__all__", ()):
            if inspect.isfunction(function := getattr(imported, name)):
                yield function
    for name in MODULES:
        module = importlib.import_module(name)
        if ".baselines." in name or ".mechanisms." in name or name in PURE or name == "nnunet_dg.tensors":
            for function in vars(module).values():
                defined_here = inspect.isfunction(function) and function.__module__ == name
                if defined_here and not function.__name__.startswith("_"):
                    yield function


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_the_printed_result(module):
    torch.manual_seed(0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    imported = importlib.import_module(module)
    assert doctest.testmod(imported, extraglobs={"torch": torch}, optionflags=flags).failed == 0


@pytest.mark.parametrize("function", public_functions(), ids=lambda function: function.__qualname__)
def test_every_public_function_of_a_method_has_an_example(function):
    assert ">>> " in (inspect.getdoc(function) or "")
