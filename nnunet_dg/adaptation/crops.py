"""Random crops of one preprocessed volume, with the shape of training patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from torch import Tensor


class Crops:
    """Positions of random crops, uniform over the volume.

    Where the volume is smaller than a patch, it is padded with zeros on both sides, as nnU-Net pads it to predict. All
    crops then contain the whole axis, and `inside` leaves out the padding.

    Args:
        shape: Shape of the volume, three sizes.
        patch_size: Shape of the crops: three sizes, or two for crops of single slices, which are drawn uniformly.
    """

    def __init__(self, shape: Sequence[int], patch_size: Sequence[int]) -> None:
        self.patch_size = tuple(patch_size)
        self.planar = len(self.patch_size) < len(shape)
        padded, slices = pad_nd_image(torch.empty(1, *shape, device="meta"), self.patch_size, return_slicer=True)
        sizes, inside = padded.shape[1:], slices[1:]
        window = ((1,) if self.planar else ()) + self.patch_size
        self.window = window
        self.last = [size - length for size, length in zip(sizes, window, strict=True)]
        kept = [s if size > old else slice(None) for s, size, old in zip(inside, sizes, shape, strict=True)]
        self.inside = (slice(None), slice(None), *kept[len(shape) - len(self.patch_size) :])

    def draw(self, count: int, generator: torch.Generator) -> list[tuple[int, ...]]:
        """First voxel of each of ``count`` crops, in the padded volume."""
        return [
            tuple(int(torch.randint(last + 1, (), generator=generator)) for last in self.last) for _ in range(count)
        ]

    def cut(self, volume: Tensor, starts: Sequence[tuple[int, ...]]) -> Tensor:
        """The crops at these positions: ``(C, *shape) -> (B, C, *patch_size)``, a new float32 tensor.

        Args:
            volume: Volume ``(C, *shape)``, any dtype; it may be a tensor of inference mode.
            starts: Positions from `draw`.
        """
        padded = pad_nd_image(volume, self.patch_size, "constant", {"value": 0})
        parts = []
        for start in starts:
            window = (slice(first, first + length) for first, length in zip(start, self.window, strict=True))
            where = (slice(None), *window)
            part = padded[where]
            parts.append(part[:, 0] if self.planar else part)
        return torch.stack(parts).float()
