"""The style of TinyMIG's styled pass: what gives the student's features other statistics."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from nnunet_dg.tensors import Statistics, modulate, statistics
from nnunet_dg.tinymig.modulation import OwnStatistics

MOST_EARLIER = 8  # samples whose statistics are remembered, where a step has one sample


class Style:
    """Gives the features of one encoder stage other statistics, between `begin` and `end`.

    Args:
        own: How the features' own statistics are changed; None: `begin` is told the statistics.
    """

    def __init__(self, own: OwnStatistics | None = None) -> None:
        self.own = own
        self._given: Statistics | None = None
        self._single: Statistics | None = None
        self._earlier: deque[Statistics] = deque(maxlen=MOST_EARLIER)

    def begin(self, given: Statistics | None = None) -> None:
        """Statistics of the next pass: mean and deviation, each ``(B, A)``; None where the features' own are changed.

        A single sample takes those of an earlier one.
        """
        if self.own is not None and self._earlier:
            given = self._earlier[int(torch.randint(len(self._earlier), ()))]
        self._given = given

    def end(self) -> None:
        """Forget the given statistics, and remember those of a single sample for later ones."""
        if self._single is not None:
            self._earlier.append(self._single)
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
