"""Sets nnU-Net's folders to temporary ones. Import it before nnU-Net, which may read them during its import."""

import os
import tempfile

folder = tempfile.TemporaryDirectory(prefix="nnunet_dg-")  # removed when Python exits
for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ[name] = os.path.join(folder.name, name)
