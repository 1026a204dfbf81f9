"""What to cite: nnU-Net, the methods of a trainer, and the extractors that its settings name."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_dg.method import Method, Paper

NNUNET = Paper(
    title="nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    authors="Fabian Isensee, Paul F. Jaeger, Simon A. A. Kohl, Jens Petersen, Klaus H. Maier-Hein",
    venue="Nature Methods 18, 203-211",
    year=2021,
    url="https://doi.org/10.1038/s41592-020-01008-z",
    entry="article",
)
ANATOMIX = Paper(
    title="Learning general-purpose biomedical volume representations using randomized synthesis",
    authors="Neel Dey, Benjamin Billot, Hallee E. Wong, Clinton J. Wang, Mengwei Ren, P. Ellen Grant, Adrian V. Dalca, "
    "Polina Golland",
    venue="International Conference on Learning Representations (ICLR)",
    year=2025,
    url="https://arxiv.org/abs/2411.02372",
)
MIND = Paper(
    title="Towards realtime multimodal fusion for image-guided interventions using self-similarities",
    authors="Mattias P. Heinrich, Mark Jenkinson, Bartlomiej W. Papiez, Michael Brady, Julia A. Schnabel",
    venue="Medical Image Computing and Computer-Assisted Intervention (MICCAI)",
    year=2013,
    url="https://doi.org/10.1007/978-3-642-40811-3_24",
)
RAM_DSIR = Paper(
    title="Generalizable Medical Image Segmentation via Random Amplitude Mixup and Domain-Specific Image Restoration",
    authors="Ziqi Zhou, Lei Qi, Yinghuan Shi",
    venue="European Conference on Computer Vision (ECCV)",
    year=2022,
    url="https://arxiv.org/abs/2208.03901",
)
BUILT_ON = {"sgcg": {"ram_dsir": RAM_DSIR}}  # by method: papers whose parts it contains
EXTRACTORS = {"anatomix": ("anatomix", ANATOMIX), "anatomix-dev": ("anatomix", ANATOMIX), "mind": ("mind", MIND)}


def papers_of(methods: Sequence[Method]) -> dict[str, Paper]:
    """What to cite where methods were used, by BibTeX key: nnU-Net first, then each method and what it builds on.

    A teacher or extractor that the user provides, such as a folder of nnU-Net's, is not known here.
    """
    papers = {"nnunet": NNUNET}
    for method in methods:
        papers[method.key] = method.paper
        extractor = getattr(method, "extractor", None) if getattr(method, "sees_features", True) else None
        for name in (extractor, getattr(method, "teacher", None)):
            if name in EXTRACTORS:
                key, paper = EXTRACTORS[name]
                papers[key] = paper
        papers |= BUILT_ON.get(method.key, {})
    return papers
