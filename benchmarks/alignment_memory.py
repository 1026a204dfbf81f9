"""Memory of TinyMIG's alignment (LRA) on nnU-Net's default 2-D plan, next to the network's own training step.

    python benchmarks/alignment_memory.py

The plan has patches of 512 x 512, batch size 12, and eight stages with 32 to 512 channels. Memory is counted with fake
tensors, see live_memory.py. For LRA it is the peak of its forward and backward pass, without the features of network
and teacher. It is given without and with the gradients of the student's features, which the network's backward pass
computes anyway.

TinyMIG: Liu et al., "TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical
Imaging", ICML 2025, https://proceedings.mlr.press/v267.
"""

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from live_memory import peak_live_memory
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from on_noise import batch, initialized, plans
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_dg.extractors.memory import LiveMemory
from nnunet_dg.step import stage_grids
from nnunet_dg.tinymig import ContentAlignment
from nnunet_dg.tinymig.alignment import pooled_shape

PATCH, BATCH, STAGES = (512, 512), 12, 8
WIDTHS = [min(32 * 2**stage, 512) for stage in range(STAGES)]


def plans_2d() -> dict:
    """nnU-Net's default plan for images of 512 x 512."""
    content = plans(64).plans
    configuration = content["configurations"].pop("3d_fullres")
    configuration |= {"patch_size": list(PATCH), "batch_size": BATCH}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": STAGES,
        "features_per_stage": WIDTHS,
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "kernel_sizes": [[3, 3]] * STAGES,
        "strides": [[1, 1]] + [[2, 2]] * (STAGES - 1),
        "n_conv_per_stage": [2] * STAGES,
        "n_conv_per_stage_decoder": [2] * (STAGES - 1),
    }
    content["configurations"]["2d"] = configuration
    return content


def alignment_memory(depths: int = 4) -> tuple[float, float]:
    """Peak memory of the alignment in GiB, without and with the gradients of the student's features."""
    widths, grids = WIDTHS[:depths], stage_grids(PATCH, [1] + [2] * (depths - 1))
    alignment = ContentAlignment(widths, grids)
    with FakeTensorMode(allow_non_fake_inputs=True):
        student = [torch.empty(BATCH, w, *g, dtype=torch.bfloat16) for w, g in zip(widths, grids, strict=True)]
        teacher = [torch.empty(BATCH, w, *pooled_shape(g)) for w, g in zip(widths, grids, strict=True)]
        for feature in [*student, *teacher]:
            feature.requires_grad_()
        with LiveMemory() as memory, torch.autocast("cpu", torch.bfloat16):
            alignment(teacher, student).backward()
    gradients = sum(feature.numel() * feature.element_size() for feature in student)
    return (memory.peak - gradients) / 2**30, memory.peak / 2**30


def main() -> None:
    trainer = initialized(nnUNetTrainer, plans_2d(), torch.device("cpu"), "2d")
    network = peak_live_memory(trainer, batch(trainer))
    without, whole = alignment_memory()
    print("| part | peak, GiB | relative to the network's step |\n| --- | --- | --- |")
    for name, peak in (
        ("the network's training step", network),
        ("LRA", without),
        ("LRA, with the gradients of the student's features", whole),
    ):
        print(f"| {name} | {peak:.2f} | {peak / network:.3f} |")


if __name__ == "__main__":
    main()
