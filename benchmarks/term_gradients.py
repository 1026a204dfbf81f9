"""Gradient of each loss term of SgCG with respect to the penultimate features, on batches of a training.

    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSgCG
    python benchmarks/term_gradients.py $nnUNet_results/DATASET/nnUNetTrainerSgCG__nnUNetPlans__3d_fullres/fold_0

Loads the checkpoint as nnU-Net's ``--c`` does, and draws batches like the training. For every term it prints the value
and the norm of the gradient with respect to the features of the image and of its amplitude-mixed copy, without the
weight of the term, in single precision. nnU-Net's trainer leaves an empty training log in the fold's folder.

SgCG: "Semantic-Guided Contrastive Generalization for Medical Image Segmentation", submission to ICLR 2025.
"""

import argparse
import os
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_dg.training.train_step import loss_terms, on_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fold", type=Path, help="fold folder of a training with an SgCG trainer")
    parser.add_argument("-chk", default="checkpoint_final.pth")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--batches", type=int, default=10)
    arguments = parser.parse_args()
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112, load batches in this process, so none must be shut down
    name, plans, configuration = arguments.fold.resolve().parent.name.split("__")
    fold = arguments.fold.resolve().name.removeprefix("fold_")
    dataset = arguments.fold.resolve().parents[1].name
    device = torch.device(arguments.device)
    trainer = get_trainer_from_args(
        dataset, configuration, fold if fold == "all" else int(fold), name, plans, device=device
    )
    trainer.load_checkpoint(str(arguments.fold / arguments.chk))
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    taken: list[torch.Tensor] = []
    penultimate = trainer.auxiliary["sgcg"].penultimate
    take = penultimate.take

    def remembered() -> torch.Tensor:
        taken.append(take())
        return taken[-1]

    penultimate.take = remembered
    trainer.network.train()
    norms, values = defaultdict(list), defaultdict(list)
    for _ in range(arguments.batches):
        taken.clear()
        terms = loss_terms(trainer, on_device(trainer, next(trainer.dataloader_train)))
        for term, value in terms.items():
            gradients = torch.autograd.grad(value, taken, retain_graph=True, allow_unused=True)
            norms[term].append(sum(g.norm() ** 2 for g in gradients if g is not None) ** 0.5)
            values[term].append(float(value))
    print("\n| term | value | gradient with respect to the features, norm |\n| --- | --- | --- |")
    for term in norms:
        print(f"| {term} | {mean(values[term]):.4f} | {mean(map(float, norms[term])):.2e} |")


if __name__ == "__main__":
    main()
