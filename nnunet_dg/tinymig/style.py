"""The style of TinyMIG's styled pass, in which the student's features get other statistics.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267, eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from nnunet_dg.baselines.efdm import EFDM
from nnunet_dg.baselines.maxstyle import MaxStyle, MaxStyleTraining
from nnunet_dg.baselines.trid import TriD, TriDTraining
from nnunet_dg.mechanisms.feature_style import FeatureStyle, FeatureStyleTraining
from nnunet_dg.mechanisms.partners import EarlierSamples
from nnunet_dg.method import Student
from nnunet_dg.tensors import Statistics, modulate, statistics
from nnunet_dg.tinymig.modulation import OwnStatistics

METHODS: dict[str, tuple[type[FeatureStyle], Callable[..., FeatureStyleTraining]]] = {
    "trid": (TriD, TriDTraining),
    "efdm": (EFDM, FeatureStyleTraining),
    "maxstyle": (MaxStyle, MaxStyleTraining),
}


def style_of_method(name: str, student: Student, stages: Sequence[int], at: str) -> FeatureStyleTraining:
    """The styled pass of another method, one of `METHODS`, which acts inside `FeatureStyleTraining.styling`.

    Args:
        name: Name of the method.
        student: Network in training.
        stages: Encoder stages whose features are changed.
        at: Place at which they are changed, see `FeatureStyle`.
    """
    method, training = METHODS[name]
    return training(method(p=1.0, stages=tuple(stages), at=at), student, always=False)


class Style:
    """Gives the features of one encoder stage other statistics, between `begin` and `end`.

    Args:
        own: How the features' own statistics are changed; None: `begin` gets the new statistics.
    """

    def __init__(self, own: OwnStatistics | None = None) -> None:
        self.own = own
        self._new: Statistics | None = None
        self._single: Statistics | None = None
        self.earlier: EarlierSamples[Statistics] = EarlierSamples()

    def begin(self, new: Statistics | None = None) -> None:
        """Set the statistics of the next pass.

        Args:
            new: Mean and deviation, each ``(B, A)``; None if the features' own statistics are changed. A batch of one
                sample then uses the statistics of an earlier sample.
        """
        self._new = new if self.own is None else self.earlier.draw()

    def end(self) -> None:
        """Forget the new statistics, and remember those of a batch of one sample for later batches."""
        if self._single is not None:
            self.earlier.remember(self._single)
        self._new, self._single = None, None

    def __call__(self, feature: Tensor) -> Tensor:
        """``(B, A, *spatial)`` -> the same shape and dtype, with other statistics.

        Raises:
            RuntimeError: `begin` was not called, or got no statistics although the features' own are not changed.
        """
        if self.own is not None:
            if self.own.partners and len(feature) == 1:
                self._single = statistics(feature.detach())
            return modulate(feature, *self.own.draw(feature, self._new), detached=self.own.detached)
        if self._new is None:
            raise RuntimeError("There are no statistics for this style: pass them to 'begin' before the forward pass.")
        return modulate(feature, *self._new)
