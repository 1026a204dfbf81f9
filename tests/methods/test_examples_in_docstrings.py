"""Every public function of a method has an example in its docstring, and every example gives what it says."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import nnunet_dg

ROOMS = ("baselines", "dropgen", "sgcg", "tinymig")
MODULES = ["nnunet_dg.tensors", "nnunet_dg.step"] + [
    f"nnunet_dg.{room}.{module.name}"
    for room in ROOMS
    for module in pkgutil.iter_modules([f"{next(iter(nnunet_dg.__path__))}/{room}"])
]


def public_functions():
    """Functions that a method's room offers by name, or that a baseline's page defines."""
    for room in ROOMS:
        package = importlib.import_module(f"nnunet_dg.{room}")
        for name in getattr(package, "__all__", ()):
            if inspect.isfunction(function := getattr(package, name)):
                yield function
    for name in MODULES:
        module = importlib.import_module(name)
        if ".baselines." in name or name == "nnunet_dg.tensors":
            for function in vars(module).values():
                ours = inspect.isfunction(function) and function.__module__ == name
                if ours and not function.__name__.startswith("_"):
                    yield function


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_say(module):
    torch.manual_seed(0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    found = importlib.import_module(module)
    assert doctest.testmod(found, extraglobs={"torch": torch}, optionflags=flags).failed == 0


@pytest.mark.parametrize("function", public_functions(), ids=lambda function: function.__qualname__)
def test_every_public_function_of_a_method_has_an_example(function):
    assert ">>> " in (inspect.getdoc(function) or "")
