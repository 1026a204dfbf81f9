"""The style of TinyMIG's styled pass: what gives the student's features other statistics."""

from __future__ import annotations

from torch import Tensor

from nnunet_dg.baselines.partners import EarlierSamples
from nnunet_dg.tensors import Statistics, modulate, statistics
from nnunet_dg.tinymig.modulation import OwnStatistics


class Style:
    """Gives the features of one encoder stage other statistics, between `begin` and `end`.

    Args:
        own: How the features' own statistics are changed; None: `begin` is told the statistics.
    """

    def __init__(self, own: OwnStatistics | None = None) -> None:
        self.own = own
        self._given: Statistics | None = None
        self._single: Statistics | None = None
        self._earlier = EarlierSamples()

    def begin(self, given: Statistics | None = None) -> None:
        """Statistics of the next pass: mean and deviation, each ``(B, A)``; None where the features' own are changed.

        A single sample takes those of an earlier one.
        """
        self._given = given if self.own is None else self._earlier.draw()

    def end(self) -> None:
        """Forget the given statistics, and remember those of a single sample for later ones."""
        if self._single is not None:
            self._earlier.remember(self._single)
        self._given, self._single = None, None

    def __call__(self, feature: Tensor) -> Tensor:
        """``(B, A, *spatial)`` -> the same shape and dtype, in the style.

        Raises:
            RuntimeError: The style has no statistics of its own, and none were given.
        """
        if self.own is not None:
            if self.own.partners and len(feature) == 1:
                self._single = statistics(feature.detach())
            return modulate(feature, *self.own.draw(feature, self._given), detached=self.own.detached)
        if self._given is None:
            raise RuntimeError("No statistics: this style has none of its own, and 'begin' was told none.")
        return modulate(feature, *self._given)
