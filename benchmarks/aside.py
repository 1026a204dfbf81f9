"""Sets nnU-Net's folders to temporary ones. To be imported before nnU-Net, which may read them as it is imported."""

import os
import tempfile

folder = tempfile.TemporaryDirectory(prefix="nnunet_dg-")  # removed as Python ends
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ[name] = os.path.join(folder.name, name)
