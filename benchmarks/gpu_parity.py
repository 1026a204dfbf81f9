"""Compares logits that a GPU computes with those of the CPU, on noise, with nnU-Net's default network.

    python benchmarks/gpu_parity.py
    python benchmarks/gpu_parity.py --rehearse nnUNetTrainerDropGen_MIND     # tiny, on the CPU if there is no GPU

For each trainer: the largest difference relative to the standard deviation of the CPU's logits, in float32 without and
with TF32, and under autocast, as nnU-Net predicts; and the share of voxels with another label under autocast. The
exit status is 1 where float32 without TF32 differs by more than a hundredth.
"""

import argparse
import sys
from contextlib import nullcontext

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from every_trainer import training
from torch import Tensor, nn

from nnunet_dg.host import unwrap

TRAINERS = (
    "nnUNetTrainer",
    "nnUNetTrainerDropGen",
    "nnUNetTrainerDropGen_MIND",
    "nnUNetTrainerDropGen_Synthetic",
    "nnUNetTrainerSgCG",
    "nnUNetTrainerTinyMIG",
    "nnUNetTrainerMixStyle",
)
LARGEST = 1e-2  # random anatomix features have means many times their deviation, which multiplies rounding errors


@torch.inference_mode()
def logits(network: nn.Module, images: Tensor, device: torch.device, tf32: bool = False, half: bool = False) -> Tensor:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    with torch.autocast(device.type) if half else nullcontext():
        return network.to(device)(images.to(device)).float().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--rehearse", action="store_true", help="patches of 16^3; on the CPU without a GPU")
    parser.add_argument("trainers", nargs="*", default=TRAINERS)
    arguments = parser.parse_args()
    if arguments.rehearse:
        arguments.patch = 16
    elif not torch.cuda.is_available():
        sys.exit("There is no GPU.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("| trainer | float32 | TF32 | autocast | other labels |\n| --- | --- | --- | --- | --- |")
    differs = False
    for name in arguments.trainers:
        torch.manual_seed(0)
        step = training(name, 3, arguments.patch, 2)
        step.trainer.set_deep_supervision_enabled(False)
        network, images = unwrap(step.trainer.network).eval(), step.batch["data"]
        expected = logits(network, images, torch.device("cpu"))
        ways = {"float32": {}, "TF32": {"tf32": True}, "autocast": {"tf32": True, "half": True}}
        found = {way: logits(network, images, device, **options) for way, options in ways.items()}
        largest = {way: float((x - expected).abs().max() / expected.std()) for way, x in found.items()}
        other = float((found["autocast"].argmax(1) != expected.argmax(1)).double().mean())
        print(f"| `{name}` | {' | '.join(f'{x:.1e}' for x in largest.values())} | {other:.2%} |", flush=True)
        differs |= not largest["float32"] <= LARGEST
    sys.exit(int(differs))


if __name__ == "__main__":
    main()
