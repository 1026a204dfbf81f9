"""Every Python process with this folder on PYTHONPATH imports this module when it starts.

DeprecationWarnings of nnU-Net and of this package are errors, since nnU-Net announces changes of its signatures by
them. On a CPU, nnU-Net's commands compute with one thread per core, whatever OMP_NUM_THREADS says; here with one, since
tests run side by side. With WITHOUT_EXTRAS in the environment, the packages of our extras are not found.
"""

import multiprocessing
import os
import sys
import warnings
from importlib.machinery import PathFinder

EXTRAS = {"monai", "statsmodels", "tabulate", "jinja2", "timm", "safetensors", "huggingface_hub", "snakemake"}

warnings.filterwarnings("error", category=DeprecationWarning, module=r"(nnunetv2|nnunet_dg|__main__)\b")
# a warning of Python 3.10 and 3.11 when nnU-Net copies a file
warnings.filterwarnings("ignore", category=DeprecationWarning, message="The distutils package is deprecated")

multiprocessing.cpu_count = lambda: 1


class WithoutExtras(PathFinder):
    """The usual search of sys.path, except for the packages of our extras."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in EXTRAS:
            return None
        return super().find_spec(fullname, path, target)


if "WITHOUT_EXTRAS" in os.environ:
    sys.meta_path[:] = [WithoutExtras if finder is PathFinder else finder for finder in sys.meta_path]
