"""Base of predictors that adapt to each volume. Preprocessing, sliding window and export are nnU-Net's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_dg.adaptation.crops import Crops
from nnunet_dg.adaptation.norms import frozen_parts
from nnunet_dg.errors import DataError
from nnunet_dg.host import unwrap
from nnunet_dg.robustness.corruptions import seed_of


class AdaptationError(DataError, RuntimeError):
    """A volume cannot be adapted to; the message says why."""


class AdaptingPredictor(nnUNetPredictor):
    """Predictor whose logits of a volume depend on that volume through adaptation. Weights are restored after each.

    Subclasses implement `adapted_logits`.

    Args:
        plain: Predictor with the model, which stays usable.
        seed: Seed of all random numbers. Those of a volume depend on the seed and on `case`, not on other volumes.

    Attributes:
        case: Name of the current volume.
        parameters: Parameters that adapt, by name.
        notes: What happened in the current volume, for the record; JSON values by name.
    """

    def __init__(self, plain: nnUNetPredictor, seed: int) -> None:
        with redirect_stdout(StringIO()):  # nnU-Net prints a line for each predictor on a CPU
            super().__init__(
                tile_step_size=plain.tile_step_size,
                use_gaussian=plain.use_gaussian,
                use_mirroring=plain.use_mirroring,
                perform_everything_on_device=plain.perform_everything_on_device,
                device=plain.device,
                allow_tqdm=False,
            )
        self.manual_initialization(
            plain.network,
            plain.plans_manager,
            plain.configuration_manager,
            plain.list_of_parameters,
            plain.dataset_json,
            plain.trainer_name,
            plain.allowed_mirroring_axes,
        )
        self.seed, self.case = seed, ""
        self.parameters: dict[str, nn.Parameter] = {}
        self.notes: dict[str, Any] = {}

    def adapted_logits(self, data: Tensor) -> Tensor:
        """Logits of a preprocessed volume: ``(C, X, Y, Z)`` -> ``(K, X, Y, Z)``, float16, on the CPU."""
        raise NotImplementedError

    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """See `adapted_logits`. nnU-Net calls this for each volume.

        Raises:
            AdaptationError: The adapted network gives logits that are not finite.
        """
        self.notes = {}
        with torch.inference_mode(False), deterministic():
            logits = self.adapted_logits(data)
        if not logits.isfinite().all():
            raise self._overflow()
        segmentation = self.label_manager.convert_logits_to_segmentation(logits)
        self.notes["foreground_fraction"] = float((segmentation > 0).float().mean())
        return logits

    def adapted(self) -> dict[str, Any]:
        """What adapts, for the record: `parameters` by name, and the frozen extractors, which do not."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.parameters.values()),
            "tensors": list(self.parameters),
            "frozen_extractors": frozen_parts(unwrap(self.network)),
        }

    @property
    def regions(self) -> bool:
        """Whether the outputs are regions, not exclusive classes."""
        return bool(self.label_manager.has_regions)

    def window_logits(self, data: Tensor) -> Tensor:
        """Logits of the network as it is now, by nnU-Net's sliding window, on the CPU."""
        try:
            return self.predict_sliding_window_return_logits(data).to("cpu").clone()
        except RuntimeError as error:
            if "inf in predicted array" not in str(error):
                raise
            raise self._overflow() from error

    def _overflow(self) -> AdaptationError:
        advice = "Use a smaller `rate` or fewer `steps`." if self.parameters else "Check the image and the models."
        return AdaptationError(f"{self.case}: logits of the adapted network are not finite. {advice}")

    @contextmanager
    def loaded(self, fold: int) -> Iterator[nn.Module]:
        """The network with the weights of one of the folds, on the device, in eval mode; they are restored afterwards.

        Args:
            fold: Position of the fold among those of the model.
        """
        network = unwrap(self.network)
        network.load_state_dict(self.list_of_parameters[fold])
        try:
            yield network.to(self.device).eval()
        finally:
            network.load_state_dict(self.list_of_parameters[fold])

    def generator(self, fold: int) -> torch.Generator:
        """Random numbers for the current volume and a fold."""
        return torch.Generator().manual_seed(seed_of(f"fold {fold} of {self.case}", self.seed))

    def fit(
        self,
        data: Tensor,
        generator: torch.Generator,
        steps: int,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Crops, list[tuple[int, ...]], Tensor], Tensor],
    ) -> list[float]:
        """Minimize a loss on random crops of a volume; a step has as many crops as nnU-Net's batch.

        Args:
            data: Preprocessed volume, ``(C, X, Y, Z)``.
            generator: Random numbers of the crops.
            steps: Number of steps.
            optimizer: Optimizer of the parameters that adapt.
            loss: Function of the crops, their positions and their logits ``(B, K, *patch_size)``.

        Returns:
            The loss of each step, before it.

        Raises:
            AdaptationError: The loss is not finite.
        """
        crops = Crops(data.shape[1:], self.configuration_manager.patch_size)
        network, losses = unwrap(self.network), []
        for step in range(steps):
            starts = crops.draw(self.configuration_manager.batch_size, generator)
            with torch.enable_grad():
                batch = crops.cut(data, starts).to(self.device)
                with self._precision():
                    logits = network(batch)
                value = loss(crops, starts, logits)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
            losses.append(value.item())
            if not value.isfinite():
                raise AdaptationError(
                    f"{self.case}: the loss is {losses[-1]} after {step} steps. Use a smaller `rate` or fewer `steps`."
                )
            optimizer.step()
        return losses

    def _precision(self) -> Any:
        """bfloat16 on GPUs that have it, which needs the memory that nnU-Net planned; else float32."""
        if self.device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()


@contextmanager
def deterministic() -> Iterator[None]:
    """Convolutions with the same result in every run. nnU-Net's predictor lets cuDNN choose them by time."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
