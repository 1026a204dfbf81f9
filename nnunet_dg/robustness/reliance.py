"""`nnunet-dg stability reliance`: what a trained DropGen model leans on, the image or its features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from nnunet_dg.dropgen import DropGenNetwork
from nnunet_dg.extras import require
from nnunet_dg.files import write_csv
from nnunet_dg.robustness.trained_model import Case, ModelError, TrainedModel

PARTS = ("nothing", "image", "features")


def reliance(
    folder: Path,
    output: Path,
    *,
    images: Path | None = None,
    truths: Path | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    max_cases: int | None = None,
    device: str = "cuda",
    mirroring: bool = True,
) -> pd.DataFrame:
    """Metrics of a DropGen model as it is, with the image channels zeroed, and with the features zeroed.

    Writes ``reliance.csv``.

    Args:
        folder: the model, see `TrainedModel`, as ``folds``, ``checkpoint``, ``device`` and ``mirroring``.
        output: a folder.
        images: with ``truths``, folders of labelled cases; None: the validation cases of the fold.
        truths: see ``images``.
        folds: of the model.
        checkpoint: likewise.
        max_cases: the first cases alone.
        device: for nnU-Net's predictor.
        mirroring: at test time.

    Returns:
        One row per zeroed part, case and label.

    Raises:
        ExtraError: The extra "report" is not installed.
        ModelError: the model is none of DropGen's, or does not see both image and features.
    """
    require("report", "Measuring surfaces")
    model = TrainedModel(folder, folds, checkpoint, device, mirroring)
    network = model.network
    if not isinstance(network, DropGenNetwork) or not network.settings.sees_image or network.extractor is None:
        raise ModelError(
            f"{folder} is not a DropGen model that sees both image and features: there is nothing to compare."
        )
    cases = model.cases(images, truths)[:max_cases]
    output.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(_measure(model, network, cases))
    write_csv(output / "reliance.csv", table)
    return table


def _measure(model: TrainedModel, network: DropGenNetwork, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """One row per case, zeroed part and label."""
    rows = []
    with tqdm(cases, "zeroing", unit="case") as progress:
        for case in progress:
            image, truth, properties = model.read(case)
            for part in PARTS:
                with zeroed(network, part):
                    scores = model.score(image, truth, properties)
                rows += [{"zeroed": part, "case": case.name, "label": label} | of for label, of in scores.items()]
    return rows


@contextmanager
def zeroed(network: DropGenNetwork, part: str) -> Iterator[None]:
    """One of `PARTS` of what the segmentation network sees is zero, as if all its channels were dropped.

    What is left is not scaled up. A cascade's previous stage is left alone.
    """
    images = network.num_image_channels
    keep = {"nothing": (1, 1), "image": (0, 1), "features": (1, 0)}[part]

    def zero(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (torch.cat([args[0][:, :images] * keep[0], args[0][:, images:] * keep[1]], dim=1),)

    handle = network.dropout.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()
