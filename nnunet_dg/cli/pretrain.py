"""``nnunet-dg pretrain``: training an extractor without data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_dg.cli.arguments import Commands, in_options, positive
from nnunet_dg.cli.ending import Ended


def add_pretrain(commands: Commands) -> None:
    """Add ``nnunet-dg pretrain``."""
    pretrain = commands.add_parser("pretrain", help="train an extractor on generated volumes, without data")
    actions = pretrain.add_subparsers(title="extractors", required=True, metavar="EXTRACTOR")
    synthetic = actions.add_parser(
        "synthetic",
        help="train the small network of the extractor 'synthetic'",
        description="Trains a small network on random shapes in random contrasts, and writes its weights, and a JSON "
        "file that says how they were made. Run the same command again to resume after an interruption: the result is "
        "the same file, with the same number of threads (OMP_NUM_THREADS). To use it, set extractor to synthetic and "
        "weights to FILE in the plans, under nnunet_dg and dropgen. This takes 6 to 12 minutes on one CPU core.",
    )
    synthetic.add_argument("-o", metavar="FILE", type=Path, required=True, help="file to write, for example mine.pt")
    synthetic.add_argument("--dims", type=int, choices=(2, 3), default=3, help="2-D or 3-D (default: %(default)s)")
    synthetic.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    synthetic.add_argument(
        "--steps",
        metavar="N",
        type=positive,
        default=1000,
        help="number of steps, of 0.4 to 0.7 s on one CPU core (default: %(default)s, as for the included files)",
    )
    synthetic.add_argument(
        "--every", metavar="N", type=positive, default=125,
        help="steps between checkpoints, and between measures on held-out pairs (default: %(default)s)",
    )  # fmt: skip
    synthetic.add_argument(
        "-device", "--device", choices=("cpu", "cuda"), default="cpu", help="device (default: %(default)s)"
    )
    synthetic.set_defaults(run=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from nnunet_dg.pretraining.checkpoint import checkpoint_of
    from nnunet_dg.pretraining.pretrain import pretrain

    a = arguments
    options = {"output": "-o", "device": "-device", **{name: f"--{name}" for name in ("seed", "steps", "every")}}
    try:
        with in_options(options):
            path = pretrain(
                a.o, dims=a.dims, seed=a.seed, steps=a.steps, every=a.every, device=a.device, log=tqdm.write
            )
    except (KeyboardInterrupt, Ended):
        checkpoint = checkpoint_of(a.o)
        how = f"resume from {checkpoint}" if checkpoint.exists() else "start again, since no checkpoint is written yet"
        print(f"\nInterrupted. Run the same command to {how}.", file=sys.stderr)
        raise
    print(f"Written: {path} and {path.with_suffix('.json').name}")
    return 0
