"""Install a file as anatomix, and die after the Nth file was renamed: python killed_while_installing.py FILE N."""

import os
import signal
import sys
from pathlib import Path

from nnunet_dg.extractors import weights as weight_files

file, after = Path(sys.argv[1]), int(sys.argv[2])
replace, replaced = Path.replace, []


def replace_and_die(self, target):
    replace(self, target)
    replaced.append(target)
    if len(replaced) == after:
        os.kill(os.getpid(), signal.SIGKILL)


Path.replace = replace_and_die
weight_files.install(weight_files.PUBLISHED["anatomix"], file, unpublished=True)
