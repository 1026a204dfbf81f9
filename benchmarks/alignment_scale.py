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

import aside  # noqa: F401, before nnU-Net

# isort: split
from fixed_alignment import trained


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
