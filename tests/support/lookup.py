"""nnU-Net's own search for a class, for programs that run in a fresh process."""

import os

import nnunetv2


def look_up(name, *package):
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = os.path.join(nnunetv2.__path__[0], *package)
    return recursive_find_python_class(folder, name, ".".join(["nnunetv2", *package]))


def trainer(name):
    return look_up(name, "training", "nnUNetTrainer")
