"""Alpha tuning: logits of a stable and an unstable model, mixed before softmax or sigmoid."""

from __future__ import annotations

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_dg.adaptation.mixing import mixed
from nnunet_dg.adaptation.predictor import AdaptingPredictor


class AlphaPredictor(AdaptingPredictor):
    """Predictor of ``(1 - alpha) h_stable + alpha h_unstable``, each by its own sliding window, on nnU-Net's grid.

    Each model may be an ensemble of folds, whose logits nnU-Net averages. Weights do not change.

    Args:
        unstable: Predictor with the unstable model.
        stable: Predictor with the stable model, for the same preprocessed data.
        alpha: Share of the unstable model, in [0, 1].
    """

    def __init__(self, unstable: nnUNetPredictor, stable: nnUNetPredictor, alpha: float) -> None:
        super().__init__(unstable, 0)
        self.stable, self.alpha = stable, alpha

    def adapted_logits(self, data: Tensor) -> Tensor:
        """See the base class."""
        return mixed(*both_logits(self.stable, self, data), self.alpha)


def both_logits(stable: nnUNetPredictor, unstable: nnUNetPredictor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Plain logits of both models, ``(K, X, Y, Z)`` each, on the CPU."""
    plain = nnUNetPredictor.predict_logits_from_preprocessed_data
    return plain(stable, data), plain(unstable, data)
