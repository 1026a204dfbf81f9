"""Sets nnU-Net's folders to temporary ones. To be imported before nnU-Net, which may read them as it is imported."""

import os
import tempfile

for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ[name] = tempfile.mkdtemp(prefix=f"{name}-")
