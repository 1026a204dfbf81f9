"""To be imported before nnU-Net: sets nnU-Net's folders, which it may read at import, to temporary ones.

It also makes the pieces that benchmarks share with the tests, in tests/support/, importable.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "tests" / "support"))
folder = tempfile.TemporaryDirectory(prefix="nnunet_dg-")  # removed when Python exits
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ[name] = os.path.join(folder.name, name)
