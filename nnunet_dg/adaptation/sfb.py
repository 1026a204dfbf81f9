"""Stable feature boosting: an unstable model learns, for each volume, from a stable model's pseudo-labels."""

from __future__ import annotations

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_dg.adaptation.boosting import boosted
from nnunet_dg.adaptation.crops import Crops
from nnunet_dg.adaptation.entropy import divergence
from nnunet_dg.adaptation.norms import only, trainable
from nnunet_dg.adaptation.predictor import AdaptationError, AdaptingPredictor
from nnunet_dg.adaptation.settings import SFB
from nnunet_dg.host import unwrap


class SFBPredictor(AdaptingPredictor):
    """Predictor of the joint probabilities of a stable and an unstable model, see `SFB`.

    The stable model may be an ensemble of folds; of the unstable one, a single fold is fine-tuned. Its dropout and the
    statistics of its batch norm stay as in prediction.

    Args:
        unstable: Predictor with the unstable model.
        stable: Predictor with the stable model, for the same preprocessed data.
        temperature: Temperature that calibrates the stable model.
        settings: Settings.
        seed: Seed of all random numbers.

    Raises:
        AdaptationError: The unstable model has several folds.
    """

    def __init__(
        self, unstable: nnUNetPredictor, stable: nnUNetPredictor, temperature: float, settings: SFB, seed: int = 0
    ) -> None:
        super().__init__(unstable, seed)
        if len(self.list_of_parameters) > 1:
            raise AdaptationError(
                f"SFB fine-tunes one network in several rounds, but the unstable model has "
                f"{len(self.list_of_parameters)} folds. Choose one of the `folds`."
            )
        self.stable, self.temperature, self.settings = stable, temperature, settings
        self.parameters = trainable(unwrap(self.network))

    def adapted_logits(self, data: Tensor) -> Tensor:
        """See the base class. The softmax of the logits (sigmoid for regions) is the joint probability."""
        settings, generator = self.settings, self.generator(0)
        stable = self.stable.predict_logits_from_preprocessed_data(data).clone()
        pseudo_labels = (stable.float() / self.temperature).half()
        self.notes = {"divergence_of_crops": [], "uncorrected_outputs": []}
        with self.loaded(0) as network:
            optimizer = torch.optim.AdamW(self.parameters.values(), lr=settings.rate)
            for _ in range(settings.rounds):

                def loss(
                    crops: Crops, starts: list[tuple[int, ...]], logits: Tensor, q: Tensor = pseudo_labels
                ) -> Tensor:
                    target = crops.cut(q, starts).to(self.device)
                    return divergence(target[crops.inside], logits[crops.inside], self.regions)

                with only(network, self.parameters):
                    losses = self.fit(data, generator, settings.steps, optimizer, loss)
                unstable = self.window_logits(data)
                pseudo_labels, left = boosted(stable, unstable, pseudo_labels, self.temperature, self.regions)
                self.notes["divergence_of_crops"] += [[losses[0], losses[-1]]] if losses else []
                self.notes["uncorrected_outputs"].append(left)
        return pseudo_labels
