"""Settings of SgCG and their accepted values."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_dg.errors import SettingsError


@dataclass(frozen=True)
class SgCGSettings:
    """Settings of SgCG. The defaults are the method as published, where the paper says.

    Attributes:
        contrast: lambda (eq. 13), the weight of the contrastive loss; 0 leaves it out.
        temperature: tau of the contrastive loss, positive.
        voxels_per_class: Maximum number of randomly chosen voxels per class and step, in statistics and contrastive
            loss. More than four classes share the voxels of four.
        start_epoch: The epoch that collects the class statistics; the contrastive loss counts from the next one. null:
            a fifth of the training, or 0 with ``-pretrained_weights``, since the method starts from a trained network.
        memory: Training steps that the class statistics remember, see `ClassStatistics`; null: all (as published).
        max_count: See `ClassStatistics`; null: no limit.
        amplitude_mixup: Train on amplitude-mixed images as well (RAM-DSIR). Without it, the contrastive loss is added
            to nnU-Net's own, at little more than nnU-Net's cost.
        half_width: Of the window whose amplitudes are mixed, a fraction of the patch's shortest side in [0, 0.5].
        consistency: Weight of the symmetric KL divergence between the two predictions; 0 leaves it out.
        restoration: Weight, per domain, of restoring the original image from the mixed one's features; 0 leaves it out.
            The term is the mean over the batch, times this weight and the number of domains in training.
        balanced_batches: With ``domains.json``, draw the samples of a batch from as many domains as possible, equally
            often. nnU-Net's oversampling of foreground is not changed.

    Raises:
        SettingsError: A value that is not accepted, by name.
    """

    contrast: float = 0.1
    temperature: float = 0.1
    voxels_per_class: int = 4096
    start_epoch: int | None = None
    memory: int | None = 250
    max_count: float | None = None
    amplitude_mixup: bool = True
    half_width: float = 0.1
    consistency: float = 0.5
    restoration: float = 0.1
    balanced_batches: bool = True

    def __post_init__(self) -> None:
        for name in ("contrast", "consistency", "restoration"):
            _check(name, getattr(self, name), 0, 1e6)
        _check("temperature", self.temperature, 1e-3, 1e3)
        _check("half_width", self.half_width, 0, 0.5)
        _check("voxels_per_class", self.voxels_per_class, 2, 10**9, int)
        _check("start_epoch", self.start_epoch, 0, 10**9, int, optional=True)
        _check("memory", self.memory, 1, 10**9, int, optional=True)
        _check("max_count", self.max_count, 2, 1e30, optional=True)
        for name in ("amplitude_mixup", "balanced_batches"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} must be true or false; got {getattr(self, name)!r}.")


def _check(
    name: str, value: object, low: float, high: float, kind: type[int] | type[float] = float, optional: bool = False
) -> None:
    if optional and value is None:
        return
    number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        what = "a whole number" if kind is int else "a number"
        or_null = ", or null" if optional else ""
        raise SettingsError(f"{name} must be {what} in [{low:g}, {high:g}]{or_null}; got {value!r}.")
