"""Does TinyMIG's alignment loss fall because features become similar, or because the enhancement shrinks them?

    python benchmarks/alignment_scale.py                # 3000 steps, a few minutes on a CPU
    python benchmarks/alignment_scale.py --steps 300

Teacher and student features are fixed and unrelated, so only the enhancement (FDCE) can lower the loss term. It is
trained with nnU-Net's optimizer: SGD, learning rate 0.01, Nesterov momentum 0.99, weight decay 3e-5. The weight of the
term is 0.5. The last column is the norm of the term's gradient with respect to the student's features after training,
divided by that before.

TinyMIG: Liu et al., "TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical
Imaging", ICML 2025, https://proceedings.mlr.press/v267.
"""

import argparse
from dataclasses import dataclass

import aside  # noqa: F401, before nnU-Net

# isort: split
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.tinymig import ContentAlignment

WIDTHS, GRIDS = (8, 16), ((16, 16, 16), (8, 8, 8))


@dataclass
class Record:
    """Values of one step: the loss term, the gain of the enhancement, and the norm of the gradient."""

    term: float
    gain: float
    gradient: float


def unrelated_features(seed: int) -> list[Tensor]:
    """Features similar to those of nnU-Net's stages: smooth noise after instance norm and leaky ReLU."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(2, w, *g, generator=generator) for w, g in zip(WIDTHS, GRIDS, strict=True)]
    return [F.leaky_relu(F.instance_norm(F.avg_pool3d(n, 3, 1, 1)), 0.01) for n in noise]


def trained(scale: str, steps: int) -> tuple[ContentAlignment, list[Record]]:
    """The alignment after some steps on fixed features, with records from before each step and at the end."""
    torch.manual_seed(0)
    alignment = ContentAlignment(WIDTHS, GRIDS, scale=scale)
    optimizer = torch.optim.SGD(alignment.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    teacher = unrelated_features(1)
    student = [feature.requires_grad_() for feature in unrelated_features(2)]
    records = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        for feature in student:
            feature.grad = None
        term = alignment(teacher, student)
        (0.5 * term).backward()
        gradient = sum(float(feature.grad.square().sum()) for feature in student) ** 0.5
        records.append(Record(float(term.detach()), alignment.take_gain(), gradient))
        optimizer.step()
    return alignment, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    steps = parser.parse_args().steps
    print(
        f"| alignment_scale | term, first | after {steps} steps | std(enhanced) / std(given), first | last | gradient |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for scale in ("paper", "free"):
        _, (first, *_, last) = trained(scale, steps)
        print(
            f"| {scale} | {first.term:.4f} | {last.term:.4f} | {first.gain:.4f} | {last.gain:.4f} | "
            f"{last.gradient / first.gradient:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
