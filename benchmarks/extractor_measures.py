"""Measures of extractors without a segmentation: agreement between contrasts, and a linear probe of a structure.

    python benchmarks/extractor_measures.py --contrasts T1.nii.gz T2.nii.gz --dataset nnUNet_raw/Dataset004_Hippocampus
    python benchmarks/extractor_measures.py --contrasts ... --dataset ... --weights mine.pt other.pt

Contrasts are co-registered volumes of one subject, of which the central 96^3 voxels are compared: in one patch, in
patches cut 8, 8 and 8 voxels apart, and with unrelated noise. The probe is trained on 12 cases of the dataset, and
tested on 12 others under changed intensities: any label against background. One row per extractor: the intensity, MIND,
the untrained network of `synthetic`, and every file of weights for it.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aside  # noqa: F401, before nnU-Net

# isort: split
import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_dg.extractors import FrozenExtractor, build_extractor
from nnunet_dg.extractors.synthetic import Synthetic
from nnunet_dg.extractors.synthetic_network import SyntheticNetwork
from nnunet_dg.robustness.feature_stability import at, choose, compute, read
from nnunet_dg.robustness.position import contrast_measures, image_measures
from nnunet_dg.robustness.probe import CHANGES, probe
from nnunet_dg.robustness.similarity import linear_cka

Array = NDArray[Any]
CASES = 12  # for training, and again for the test
MEASURES = ("CKA", "CKA, shifted", "recall", "recall, shifted", "CKA, unrelated", "effective rank")


def contrasts_row(extract: Callable[[Array], Array], images: Mapping[str, Array], foreground: Array) -> list[float]:
    """Means over all pairs of images, or over all images, in the order of `MEASURES`."""
    shifted = contrast_measures(extract, images, foreground, shift=(8, 8, 8))
    single = image_measures(extract, images, foreground)
    chosen = choose(foreground)
    features = {name: at(extract(image), chosen) for name, image in images.items()}
    pairs = zip(shifted["first"], shifted["second"], strict=True)
    same = np.mean([linear_cka(features[a], features[b]) for a, b in pairs])
    means = [*shifted[["cka_shifted", "recall", "recall_shifted"]].mean(), *single.iloc[:, 1:].mean()]
    return [float(same), *map(float, means)]


def cases(dataset: Path) -> list[tuple[Array, Array]]:
    """The first cases of an nnU-Net dataset, each an image of one channel and the mask of all its labels."""
    labels = sorted((dataset / "labelsTr").glob("*.nii.gz"))[: 2 * CASES]
    images = [dataset / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz") for label in labels]
    return [(_array(image).astype(np.float32), _array(label) > 0) for image, label in zip(images, labels, strict=True)]


def _array(path: Path) -> Array:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def extractors(weights: Iterable[Path]) -> dict[str, FrozenExtractor | None]:
    """The compared extractors by name."""
    torch.manual_seed(0)
    untrained = Synthetic()
    untrained.load_published(SyntheticNetwork(3).state_dict())
    rows = {"intensity": None, "MIND": build_extractor("mind"), "untrained": untrained}
    return rows | {path.name: build_extractor("synthetic", weights=path) for path in weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contrasts", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--dataset", type=Path, required=True, metavar="FOLDER", help="with imagesTr and labelsTr")
    parser.add_argument("--weights", nargs="*", type=Path, default=[], metavar="FILE", help="of `nnunet-dg pretrain`")
    arguments = parser.parse_args()
    images, _, foreground = read({path.name: path for path in arguments.contrasts}, [96] * 3)
    known = cases(arguments.dataset)
    print("| extractor | " + " | ".join((*MEASURES, *(f"probe, {change}" for change in CHANGES))) + " |")
    print("| --- |" + " --- |" * (len(MEASURES) + len(CHANGES)))
    for name, extractor in tqdm(extractors(arguments.weights).items(), disable=None):
        extract = partial(compute, extractor)
        areas = probe(extract, known[:CASES], known[CASES:])
        values = [*contrasts_row(extract, images, foreground), *areas.values()]
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


if __name__ == "__main__":
    main()
