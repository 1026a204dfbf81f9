"""Base class of frozen extractors: scaling, padding, cropping, normalizing, and staying frozen."""

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
    """Base class of all extractors: ``(B, 1, *spatial)``, any range -> ``(B, out_channels, *spatial)``.

    The input is scaled per sample and padded by replication to a size that `features` accepts. The features are cropped
    back and normalized: ``s = InstanceNorm(f(minmax(x)))``. This is section 3 of the DropGen paper: Diaz et al., "Why
    Invariance is Not Enough for Biomedical Domain Generalization and How to Fix It", 2026,
    https://arxiv.org/abs/2604.02564.

    A frozen extractor computes without gradient, stays in eval mode even if a parent is set to training mode, and has
    no parameter that requires a gradient. A subclass sets the attributes below and implements `features`. Parameters
    start as NaN and must be loaded: an extractor without weights raises an error when called.

    If the surrounding network is cast to a narrower type, weights and computation stay in float32 (or float64). After
    ``network.bfloat16()``, only the result is bfloat16.

    Attributes:
        out_channels: Number of feature channels d.
        accepted_dims: Accepted numbers of spatial axes, for example ``(3,)``.
        multiple: Spatial sizes are padded to a multiple of this number, and to at least twice this number; one number,
            or one per axis.
        scaling: Scaling of the input of `features`, one of `SCALINGS`: the paper's min-max, or z-score.
        normalize: Normalization of the features, one of `NORMALIZATIONS`: the paper's instance norm, or unit norm over
            the channels of each voxel.
        has_weights: Whether weights have been loaded; always True for an extractor without parameters.
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
        """Raw features ``(B, d, *spatial)`` of a scaled and padded image ``(B, 1, *spatial)``."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Fill parameters with NaN, and turn off gradients and training mode. To be called once they are built."""
        for parameter in self.parameters():
            parameter.requires_grad_(False).fill_(float("nan"))
            self.has_weights = False
        self.eval()

    def train(self, mode: bool = True) -> FrozenExtractor:
        """Stay in eval mode; ``mode`` is ignored."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenExtractor:
        """Like `torch.nn.Module._apply`, but casts to a narrow floating-point type leave the weights unchanged."""

        def keep_wide(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if result.dtype in NARROW else result

        return super()._apply(keep_wide, recurse)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Normalized features of ``x``.

        Args:
            x: Image ``(B, 1, *spatial)``, floating point, any range.

        Returns:
            Features ``(B, out_channels, *spatial)`` without gradient, with zero mean and unit variance per sample and
            channel, or unit norm per voxel (see `normalize`); zeros for a constant image. They have the dtype of ``x``
            if it is bfloat16 or float16, and otherwise the dtype that `features` returns.

        Raises:
            ValueError: The number of axes or channels is wrong, or an axis has a single voxel.
            RuntimeError: No weights have been loaded.
        """
        self._check(x)
        scaled, crop = padded(self._in_own_type(SCALINGS[self.scaling](x)), self.multiple)
        s = NORMALIZATIONS[self.normalize](self.features(scaled)[crop])
        # in half precision, features of a constant image differ by rounding errors, which the norm would amplify
        axes = tuple(range(1, x.ndim))
        s.mul_(scaled.amax(axes, keepdim=True) > scaled.amin(axes, keepdim=True))  # in place: a new tensor takes longer
        return s.to(x.dtype) if x.dtype in NARROW else s

    def _in_own_type(self, x: Tensor) -> Tensor:
        for weight in self.parameters():
            if weight.is_floating_point():
                return x.to(weight.dtype)
        return x

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        if x.ndim - 2 not in self.accepted_dims or x.shape[1] != 1:
            axes = " or ".join(f"(B, 1, {', '.join('XYZ'[:n])})" for n in self.accepted_dims)
            raise ValueError(f"{name} takes an input of shape {axes}; got {tuple(x.shape)}.")
        check_size(x.shape[2:])
        if not self.has_weights:
            raise RuntimeError(
                f"{name} has no weights yet. A training loads them at its start, and a checkpoint contains them. To "
                f"use an extractor on its own, create it with nnunet_dg.extractors.build_extractor."
            )

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
        """Whether all parameters are NaN, as in a checkpoint saved before weights were loaded."""
        return all(bool(weights[key].isnan().all()) for key, _ in self.named_parameters() if key in weights)


def padded(x: Tensor, multiple: int | Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """The tensor ``(B, C, *spatial)`` padded by replication on both sides, and the crop that undoes it.

    Args:
        x: Tensor to pad.
        multiple: Number of which each spatial size becomes a multiple, at least twice this number; or one per axis.
    """
    spatial = x.shape[2:]
    multiples = (multiple,) * len(spatial) if isinstance(multiple, int) else multiple
    missing = [max(2 * m, -(-size // m) * m) - size for size, m in zip(spatial, multiples, strict=True)]
    below = [m // 2 for m in missing]
    padding = [n for m, b in zip(reversed(missing), reversed(below), strict=True) for n in (b, m - b)]
    crop = (slice(None), slice(None), *(slice(b, b + size) for b, size in zip(below, spatial, strict=True)))
    return (F.pad(x, padding, mode="replicate") if any(padding) else x), crop


def check_size(spatial: Sequence[int]) -> None:
    """Refuse a patch with fewer than two voxels along an axis, which gives extractors no context.

    Raises:
        ValueError: The patch is too small.
    """
    if min(spatial) < 2:
        raise ValueError(
            f"patch too small: every spatial axis needs at least 2 voxels; got {tuple(spatial)}. "
            f"Increase patch_size in the plans, or use a 2-D configuration for single slices."
        )


SCALINGS = {"minmax": minmax, "zscore": zscore}
NORMALIZATIONS = {"instance": instance_norm, "voxelwise": unit_norm}
