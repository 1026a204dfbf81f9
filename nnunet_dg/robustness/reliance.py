"""Whether a trained DropGen model relies on the image or on its features."""

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
    """Metrics of a DropGen model with its normal input, with the image zeroed, and with the features zeroed.

    Writes ``reliance.csv``.

    Args:
        folder: Model folder, see `TrainedModel`.
        output: Folder to write to.
        images: Folder of images, given together with ``truths``; by default the validation cases of the fold.
        truths: Folder of their segmentations.
        folds, checkpoint, device, mirroring: See `TrainedModel`.
        max_cases: Maximum number of cases; by default all.

    Returns:
        One row per zeroed part, case and label.

    Raises:
        ModelError: The model is not a DropGen model, or its network does not receive both image and features.
        ExtraError: The extra "report" is not installed.
    """
    require("report", "Measuring surfaces")
    model = TrainedModel(folder, folds, checkpoint, device, mirroring)
    network = model.network
    if not isinstance(network, DropGenNetwork) or not network.settings.sees_image or network.extractor is None:
        raise ModelError(
            f"{folder} is not a DropGen model whose network receives both image and features, so there is nothing to "
            f"compare. Choose another model."
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
                named = {"zeroed": part, "case": case.name}
                rows += [named | {"label": label} | metrics for label, metrics in scores.items()]
    return rows


@contextmanager
def zeroed(network: DropGenNetwork, part: str) -> Iterator[None]:
    """Context manager that zeroes one of `PARTS` of the segmentation network's input, like dropping all its channels.

    The other channels are not scaled up. The previous stage of a cascade is not changed.
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
