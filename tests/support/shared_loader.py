"""A finder and loader for nnU-Net's modules that precedes all others, like that of pytest."""

import importlib.machinery
from pathlib import Path


class Shared(importlib.machinery.SourceFileLoader):
    executed = []  # noqa: RUF012

    def __init__(self):
        pass

    def find_spec(self, name, path=None, target=None):
        if not name.startswith("nnunetv2.utilities.") or "tests" in name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            spec.loader = self
        return spec

    def get_filename(self, name=None):
        raise ImportError(name)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.executed.append(module.__name__)
        source = Path(module.__spec__.origin).read_bytes()
        exec(compile(source, module.__spec__.origin, "exec"), module.__dict__)


shared = Shared()
