"""What every frozen extractor does around its own features: scaling, padding, cropping, normalizing, staying frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.extractors.plausible import implausible
from nnunet_dg.tensors import instance_norm, minmax, unit_norm, zscore

NARROW = (torch.bfloat16, torch.float16)


class FrozenExtractor(nn.Module):
    """Base of all extractors: ``(B, 1, *spatial)``, any range -> ``(B, out_channels, *spatial)``.

    The input is scaled per sample, padded by replication to what `features` accepts, and the features are cropped
    back and normalized (DropGen, arXiv 2604.02564, section 3: ``s = InstanceNorm(f(minmax(x)))``).

    Frozen means: computed without gradient, always in eval mode whatever ``.train()`` is called on a parent, and no
    parameter asks for a gradient. A subclass sets the attributes below and implements `features`. Parameters start as
    NaN and have to be loaded: computing without weights is an error, never noise.

    Weights and computation stay in float32 (or float64) where the network around the extractor is cast to a narrower
    type: ``network.bfloat16()`` leaves them as they are, and only the result is bfloat16.

    Attributes:
        out_channels: number of feature channels d.
        accepted_dims: the numbers of spatial axes it accepts, for example ``(3,)``.
        multiple: spatial sizes are padded up to a multiple of this and to at least twice this; one number, or one
            per axis.
        scaling: one of `SCALINGS`, what `features` gets: the paper's min-max, or zero mean and unit variance.
        normalize: one of `NORMALIZATIONS`, what is done to the features: the paper's instance norm, or unit norm over
            the channels of each voxel.
        has_weights: False until weights have been loaded; always True for an extractor without parameters.
    """

    out_channels: int
    accepted_dims: tuple[int, ...] = (3,)
    multiple: int | tuple[int, ...] = 1
    scaling: str = "minmax"
    normalize: str = "instance"

    def __init__(self) -> None:
        super().__init__()
        self.has_weights = True

    def features(self, x: Tensor) -> Tensor:
        """Raw features ``(B, d, *spatial)`` of a scaled image ``(B, 1, *spatial)``, sizes already padded."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Called by subclasses once their parameters exist: NaN until loaded, no gradients, eval mode."""
        for parameter in self.parameters():
            parameter.requires_grad_(False).fill_(float("nan"))
            self.has_weights = False
        self.eval()

    def train(self, mode: bool = True) -> FrozenExtractor:
        """Stays in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenExtractor:
        """As `torch.nn.Module`'s, but a cast to a narrow floating-point type leaves the weights in theirs."""

        def keep_wide(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if result.dtype in NARROW else result

        return super()._apply(keep_wide, recurse)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Normalized features of ``x``.

        Args:
            x: ``(B, 1, *spatial)``, floating point, any range.

        Returns:
            ``(B, out_channels, *spatial)``, without gradient: zero mean and unit variance per sample and channel, or
            unit norm per voxel (see `normalize`); zeros for a constant image. In the dtype of ``x`` if that is bfloat16
            or float16, else in the one that `features` computed in: float32 or float64, or autocast's.

        Raises:
            ValueError: wrong number of axes or channels, or an axis with a single voxel.
            RuntimeError: no weights have been loaded.
        """
        self._check(x)
        padding, crop = self._padding(x.shape[2:])
        scaled = self._in_own_type(SCALINGS[self.scaling](x))
        if any(padding):
            scaled = F.pad(scaled, padding, mode="replicate")
        s = NORMALIZATIONS[self.normalize](self.features(scaled)[crop])
        # in half precision the features of a constant image differ by rounding, which the norm would blow up
        axes = tuple(range(1, x.ndim))
        s = s * (scaled.amax(axes, keepdim=True) > scaled.amin(axes, keepdim=True))
        return s.to(x.dtype) if x.dtype in NARROW else s

    def _in_own_type(self, x: Tensor) -> Tensor:
        weight = next((p for p in self.parameters() if p.is_floating_point()), x)
        return x.to(weight.dtype)

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.ndim - 2 not in self.accepted_dims or x.shape[1] != 1:
            axes = " or ".join(f"(B, 1, {', '.join('XYZ'[:n])})" for n in self.accepted_dims)
            raise ValueError(f"{name} takes an input of shape {axes}; got {tuple(x.shape)}.")
        check_size(x.shape[2:])
        if not self.has_weights:
            raise RuntimeError(
                f"{name} has no weights yet. nnU-Net's run_training loads them (on_train_start), so does a checkpoint; "
                f"by itself an extractor comes from nnunet_dg.extractors.build_extractor."
            )

    def _padding(self, spatial: torch.Size) -> tuple[list[int], tuple[slice, ...]]:
        """What `torch.nn.functional.pad` takes, last axis first, and the crop that undoes it; centred."""
        multiples = self.multiple if isinstance(self.multiple, tuple) else (self.multiple,) * len(spatial)
        missing = [max(2 * m, -(-size // m) * m) - size for size, m in zip(spatial, multiples, strict=True)]
        below = [m // 2 for m in missing]
        padding = [n for m, b in zip(reversed(missing), reversed(below), strict=True) for n in (b, m - b)]
        crop = (slice(None), slice(None), *(slice(b, b + size) for b, size in zip(below, spatial, strict=True)))
        return padding, crop

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        own = [key for key, value in self.state_dict().items() if value.is_floating_point()]
        given = {key: state_dict[prefix + key] for key in own if prefix + key in state_dict}
        if len(given) < len(own):
            return
        problem = implausible(given)
        if problem and not self._never_loaded(given):
            error_msgs: list[str] = args[-1]
            error_msgs.append(f"The checkpoint's extractor cannot be used: {problem}.")
        self.has_weights = not problem

    def _never_loaded(self, weights: dict[str, Tensor]) -> bool:
        """Whether they are what `freeze` fills in, as in a checkpoint from before weights were loaded."""
        return all(bool(weights[key].isnan().all()) for key, _ in self.named_parameters() if key in weights)


def check_size(spatial: Sequence[int]) -> None:
    """Raises a ValueError where an axis has less than two voxels: there is nothing to normalise, and no context."""
    if min(spatial) < 2:
        raise ValueError(
            f"patch too small: every spatial axis needs at least 2 voxels; got {tuple(spatial)}. "
            f"Increase patch_size in the plans, or use a 2-D configuration for single slices."
        )


SCALINGS = {"minmax": minmax, "zscore": zscore}
NORMALIZATIONS = {"instance": instance_norm, "voxelwise": unit_norm}
