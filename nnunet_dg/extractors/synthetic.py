"""The extractor `synthetic`: a small network that `nnunet-dg pretrain synthetic` trains on generated volumes only."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from nnunet_dg.errors import WeightsError
from nnunet_dg.extractors.base import FrozenExtractor
from nnunet_dg.extractors.plausible import implausible
from nnunet_dg.extractors.synthetic_network import FEATURES, SyntheticNetwork, check_dims

FOLDER = Path(__file__).parent


class Synthetic(FrozenExtractor):
    """16 features, 2-D or 3-D, invariant to ``a * x + b`` for any ``a`` other than 0, and so to contrast inversion.

    The network has seen neither images nor labels of a subject, only random shapes in random contrasts. See
    `nnunet_dg.extractors.synthetic_network` and `nnunet_dg.synthesis`.

    Args:
        spatial_dims: 2 or 3. The two networks have different weights.

    Raises:
        SettingsError: ``spatial_dims`` is neither 2 nor 3.
    """

    out_channels = FEATURES
    multiple = 2  # halved once

    def __init__(self, spatial_dims: int = 3) -> None:
        super().__init__()
        check_dims(spatial_dims)
        self.accepted_dims = (spatial_dims,)
        self.network = SyntheticNetwork(spatial_dims)
        self.freeze()

    def features(self, x: Tensor) -> Tensor:
        """Features ``(B, 16, *spatial)`` of images ``(B, 1, *spatial)`` whose sizes are multiples of 2."""
        features: Tensor = self.network(x)
        return features

    def load_published(self, weights: dict[str, Tensor]) -> None:
        """Load a state dict of `SyntheticNetwork`, in any floating-point type; it is computed with in float32.

        Raises:
            ValueError: It is of another network, or has values that are not weights.
        """
        expected = {name: tuple(value.shape) for name, value in self.network.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in weights.items()}
        if given != expected:
            raise ValueError(_difference(given, expected, self.accepted_dims[0]))
        if problem := implausible(weights):
            raise ValueError(f"it does not contain trained weights: {problem}")
        self.network.load_state_dict(weights)
        self.has_weights = True


def _difference(given: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], dims: int) -> str:
    other = 5 - dims
    if set(given) == set(expected) and len(given["stem.convolution.weight"]) == other + 2:
        return f"it is the {other}-D network, but the {dims}-D one is needed. Train that one with: {how(dims)}"
    odd = sorted(name for name in {*given, *expected} if given.get(name) != expected.get(name))
    return (
        f"it is a checkpoint of another network; {len(odd)} tensors differ, for example {odd[0]}. Train one for this "
        f"version of nnunet-dg with: {how(dims)}"
    )


def how(dims: int) -> str:
    """The command that makes a weights file for this number of spatial axes."""
    return f"nnunet-dg pretrain synthetic -o FILE --dims {dims}"


def included(dims: int) -> Path:
    """The weights file that comes with this package.

    Args:
        dims: Number of spatial axes, 2 or 3.

    Raises:
        WeightsError: This version of the package comes without one.
    """
    path = FOLDER / f"synthetic_{dims}d.pt"
    if not path.is_file():
        raise WeightsError(
            f"This version of nnunet-dg includes no {dims}-D weights of the extractor 'synthetic'. It accepts a file "
            f"of your own, which needs no data: {how(dims)}, then set weights in "
            f'plans["nnunet_dg"]["dropgen"] to FILE. Or train nnUNetTrainerDropGen_MIND, which needs no weights.'
        )
    return path
