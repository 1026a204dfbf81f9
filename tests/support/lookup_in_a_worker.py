"""Find a trainer of this package in a spawned process, and print its name."""

import multiprocessing

from lookup import trainer


def work(name):
    import torch  # noqa: F401, registers our finder

    return trainer(name).__name__


if __name__ == "__main__":
    print(multiprocessing.get_context("spawn").Pool(1).apply(work, ("nnUNetTrainerDropGen",)))
