#!/usr/bin/env python3
"""Shows the effect of SgCG's contrastive loss on features of held-out voxels, by PCA or t-SNE.

    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainer
    nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerSgCG
    python embeddings.py $nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer{,SgCG}__nnUNetPlans__3d_fullres

Computes the L2-normalized penultimate features of voxels in the fold's validation cases, up to the same number per
class. Prints the ratio of between-class to within-class scatter, and writes a figure with one panel per model. Works
with any U-Net of nnU-Net.

SgCG: "Semantic-Guided Contrastive Generalization for Medical Image Segmentation", submission to ICLR 2025.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from tqdm import tqdm

from nnunet_dg.host import unwrap
from nnunet_dg.sgcg import choose_voxels
from nnunet_dg.training.student import planned_network
from nnunet_dg.training.voxel_classes import Classes

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")  # Okabe and Ito


def embeddings(
    model: Path, fold: int, checkpoint: str, device: torch.device, cases: int, voxels: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features ``(N, A)``, labels ``(N,)`` and label names of at most ``voxels`` per class and validation case."""
    predictor = nnUNetPredictor(device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (fold,), checkpoint)
    network = unwrap(predictor.network).to(device).eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    configuration, plans = predictor.configuration_manager, predictor.plans_manager
    if predictor.label_manager.has_regions or configuration.previous_stage_name:
        raise SystemExit(f"{model}: this example supports neither regions nor cascades. Choose another model.")
    if not nnUNet_preprocessed:
        raise SystemExit("nnUNet_preprocessed is not set. Set it to the folder with the validation cases.")
    base = Path(nnUNet_preprocessed, plans.dataset_name)
    folder = str(base / configuration.data_identifier)
    validation = load_json(str(base / "splits_final.json"))[fold]["val"][:cases]
    dataset = infer_dataset_class(folder)(folder, validation)
    classes = Classes(predictor.label_manager)
    seen: list[torch.Tensor] = []
    planned_network(network).decoder.seg_layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features, labels = [], []
    for case in tqdm(validation, desc=model.name):
        data, segmentation, *_ = dataset.load_case(case)
        image, truth = patch_around_foreground(data[:], segmentation[:], configuration.patch_size)
        with torch.inference_mode():
            network(image.to(device))
        maps = torch.nn.functional.normalize(seen.pop().float(), dim=1).flatten(2)[0].T.cpu()
        y = classes.of_target(truth).flatten()
        chosen = choose_voxels(y, classes.num, voxels)
        features.append(maps[chosen])
        labels.append(y[chosen])
    names = [name for name, label in predictor.dataset_json["labels"].items() if name != "ignore"]
    return torch.cat(features).numpy(), torch.cat(labels).numpy(), names


def patch_around_foreground(
    data: np.ndarray, segmentation: np.ndarray, size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One patch for the network, ``(1, C, *size)``, and its labels ``(1, 1, *size)``, which are -1 in padding."""
    if len(size) == 2:  # the slice with the most foreground
        slices = (segmentation[0] > 0).sum((1, 2))
        data, segmentation = data[:, slices.argmax()], segmentation[:, slices.argmax()]
    places = np.argwhere(segmentation[0] > 0)
    center = places.mean(0) if len(places) else np.array(segmentation.shape[1:]) / 2
    cuts, padding = [], []
    for c, n, wanted in zip(center, data.shape[1:], size, strict=True):
        start = int(np.clip(round(c - wanted / 2), 0, max(n - wanted, 0)))
        cuts.append(slice(start, start + wanted))
        padding.append((0, max(wanted - n, 0)))
    where = (slice(None), *cuts)
    image = np.pad(data[where], [(0, 0), *padding])
    truth = np.pad(segmentation[where], [(0, 0), *padding], constant_values=-1)
    return torch.from_numpy(image)[None].float(), torch.from_numpy(truth)[None]


def scatter_ratio(features: np.ndarray, labels: np.ndarray) -> float:
    """Between-class over within-class scatter, with equal weight for all classes; large if they are well separated."""
    members = [features[labels == k] for k in np.unique(labels[labels >= 0])]
    means = np.stack([m.mean(0) for m in members])
    between = ((means - means.mean(0)) ** 2).sum(1).mean()
    within = np.mean([((m - mean) ** 2).sum(1).mean() for m, mean in zip(members, means, strict=True)])
    return float(between / within)


def draw(
    models: dict[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str], method: str
) -> tuple[Figure, Sequence[Axes]]:
    """One panel per model, with its features projected to a plane by PCA or t-SNE.

    Args:
        models: ``{title: (features, labels)}``.
        names: Names of the labels.
        method: ``"pca"`` or ``"tsne"``.
    """
    figure = Figure(figsize=(5 * len(models), 5), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for ax, (title, (features, labels)) in zip(axes, models.items(), strict=True):
        plane = PCA(2) if method == "pca" else TSNE(2, random_state=0)
        points = plane.fit_transform(features)
        for k, name in enumerate(names):
            ax.scatter(*points[labels == k].T, s=4, color=COLORS[k % len(COLORS)], label=name)
        ax.set(title=title, xticks=[], yticks=[])
    axes[0].legend(markerscale=4)
    return figure, axes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders, TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("-o", "--output", type=Path, default=Path("embeddings.png"), help="default: %(default)s")
    parser.add_argument(
        "-f", "--fold", type=int, default=0, help="fold whose validation cases are used (default: %(default)s)"
    )
    parser.add_argument("-chk", default="checkpoint_final.pth", help="default: %(default)s")
    parser.add_argument("-device", default="cpu", help="default: %(default)s")
    parser.add_argument("--method", choices=("pca", "tsne"), default="pca", help="default: %(default)s")
    parser.add_argument("--cases", type=int, default=20, help="maximum number of cases (default: %(default)s)")
    parser.add_argument(
        "--voxels", type=int, default=100, help="maximum number of voxels per class and case (default: %(default)s)"
    )
    arguments = parser.parse_args()
    drawn, names = {}, []
    for model in arguments.models:
        torch.manual_seed(0)  # the same voxels for every model
        features, labels, names = embeddings(
            model, arguments.fold, arguments.chk, torch.device(arguments.device), arguments.cases, arguments.voxels
        )
        ratio = scatter_ratio(features, labels)
        print(f"{model.name}: between-class / within-class scatter {ratio:.3f}, {len(labels)} voxels", flush=True)
        drawn[f"{model.name}\nscatter ratio {ratio:.2f}"] = (features, labels)
    figure, _ = draw(drawn, names, arguments.method)
    figure.savefig(arguments.output, dpi=150)
    print(f"Figure: {arguments.output}")


if __name__ == "__main__":
    main()
