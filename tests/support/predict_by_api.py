"""Predict an image by nnU-Net's predictor: python predict_by_api.py MODEL IMAGE OUT, with fold 0 of a model folder."""

import sys

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

model, image, out = sys.argv[1:]
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
predictor.initialize_from_trained_model_folder(model, (0,))
predictor.predict_from_files_sequential([[image]], [out], True)
network = predictor.network.eval()
x = torch.rand((1, 1, *predictor.configuration_manager.patch_size), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    assert torch.equal(network(x), network(x)), "two eval passes differ"
