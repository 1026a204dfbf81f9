"""With this folder on PYTHONPATH, Python and the processes it starts find none of the packages that extras install."""

import sys
from importlib.machinery import PathFinder

HIDDEN = {"monai", "statsmodels", "tabulate", "jinja2", "timm", "safetensors", "huggingface_hub"}


class WithoutExtras(PathFinder):
    """The usual search of sys.path, for all other packages."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path[:] = [WithoutExtras if finder is PathFinder else finder for finder in sys.meta_path]
