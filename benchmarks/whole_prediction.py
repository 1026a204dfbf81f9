"""Measures the prediction of a whole volume by nnU-Net's predictor, with mirroring, in seconds.

    python benchmarks/whole_prediction.py                            # a volume of 160^3, patch 64^3, on the CPU
    python benchmarks/whole_prediction.py --volume 256 --patch 128 --device cuda

The predictor slides its window over a generated volume that is preprocessed already, and averages the predictions of
the mirrored copies of each window. Reading, resampling and writing are the same for all trainers and are not measured.
Trainers take turns, and a ratio is the median over the rounds.
"""

import argparse
import os
from functools import partial

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from every_trainer import training
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from step_cost import interleaved, report

from nnunet_dg.host import unwrap

TRAINERS = (
    "nnUNetTrainer", "nnUNetTrainerDropGen", "nnUNetTrainerDropGen_MIND", "nnUNetTrainerDropGen_Synthetic",
    "nnUNetTrainerTinyMIG",
)  # fmt: skip


def predictor(name: str, patch: int, device: torch.device) -> nnUNetPredictor:
    """nnU-Net's predictor with the network of a trainer, whose weights are random."""
    trainer = training(name, 3, patch, 2, device).trainer
    trainer.set_deep_supervision_enabled(False)
    network = unwrap(trainer.network).eval()
    result = nnUNetPredictor(device=device, perform_everything_on_device=True, allow_tqdm=False)
    axes = tuple(range(3))
    plans = trainer.plans_manager, trainer.configuration_manager
    result.manual_initialization(network, *plans, [network.state_dict()], trainer.dataset_json, name, axes)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", type=int, default=160, help="voxels a side (default: 160)")
    parser.add_argument("--patch", type=int, default=64, help="voxels a side of the window (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="predictions of each trainer (default: 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    os.environ["nnUNet_compile"] = "f"  # noqa: SIM112
    device = torch.device(arguments.device)
    volume = torch.randn(1, *[arguments.volume] * 3)
    predictors = {name: predictor(name, arguments.patch, device) for name in TRAINERS}
    calls = {name: partial(p.predict_logits_from_preprocessed_data, volume) for name, p in predictors.items()}
    size = f"volume {arguments.volume}^3, patch {arguments.patch}^3, mirroring in 3 axes"
    report(size, interleaved(calls, arguments.rounds, device))


if __name__ == "__main__":
    main()
