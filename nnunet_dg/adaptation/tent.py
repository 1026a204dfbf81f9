"""TENT: scales and shifts of norm layers that minimize the entropy of the predictions of a volume."""

from __future__ import annotations

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_dg.adaptation.entropy import entropy
from nnunet_dg.adaptation.norms import affine, batch_norms, only, own_statistics
from nnunet_dg.adaptation.predictor import AdaptationError, AdaptingPredictor
from nnunet_dg.adaptation.settings import Tent
from nnunet_dg.host import unwrap


class TentPredictor(AdaptingPredictor):
    """Predictor that adapts each fold of an ensemble to each volume, see `Tent`. Logits are averaged as nnU-Net does.

    Args:
        plain: Predictor with the model.
        settings: Settings.
        seed: Seed of all random numbers.

    Raises:
        AdaptationError: The network has no norm layer with scale and shift, or the trained statistics of batch norm
            are requested and it has none.
    """

    def __init__(self, plain: nnUNetPredictor, settings: Tent, seed: int = 0) -> None:
        super().__init__(plain, seed)
        self.settings = settings
        network = unwrap(self.network)
        self.parameters, self.batch_norms = affine(network), batch_norms(network)
        if not self.parameters:
            raise AdaptationError(
                "This network has no norm layer with a trained scale and shift, which TENT adapts. Use a model whose "
                "plans have norms with affine maps."
            )
        if settings.statistics == "source" and not self.batch_norms:
            raise AdaptationError(
                "`statistics` 'source' needs batch norm, but the trained norms of this network keep no statistics. "
                "Leave `statistics` unset."
            )

    def adapted_logits(self, data: Tensor) -> Tensor:
        """See the base class."""
        folds = range(len(self.list_of_parameters))
        self.notes = {"entropy_of_crops": []}
        logits = [self._adapted(fold, data) for fold in folds]
        return logits[0] if len(logits) == 1 else sum(logits[1:], logits[0]) / len(logits)

    def _adapted(self, fold: int, data: Tensor) -> Tensor:
        """Logits of one fold."""
        settings = self.settings
        with self.loaded(fold) as network:
            self._minimize(network, fold, data)
            norms = self.batch_norms if settings.statistics == "patch" else []
            with own_statistics(norms):
                return self.window_logits(data)

    def _minimize(self, network: nn.Module, fold: int, data: Tensor) -> None:
        settings = self.settings
        with only(network, self.parameters), own_statistics(self.batch_norms):
            optimizer = torch.optim.SGD(self.parameters.values(), lr=settings.rate)
            losses = self.fit(
                data, self.generator(fold), settings.steps, optimizer,
                lambda crops, _, logits: entropy(logits[crops.inside], self.regions),
            )  # fmt: skip
        if losses:
            self.notes["entropy_of_crops"].append([losses[0], losses[-1]])
