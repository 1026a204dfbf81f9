"""Squeeze-and-excitation as another way to combine the image with its features, an ablation of the DropGen paper.

J. Hu, L. Shen, G. Sun, Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnunet_dg.tensors import per_channel, wide

REDUCTION = 2  # MONAI's default; the DropGen paper gives no value
SQUEEZES = ("mean", "std")


class SqueezeExcitation(nn.Module):
    """``z * sigmoid(W2 relu(W1 s + b1) + b2)``, with ``s`` the mean or deviation of each channel over space.

    ``(B, C, *spatial)`` -> the same shape and dtype, in training and at inference. The layers train with the network.
    Instance-normalized features have mean 0 and deviation 1, so that only the image decides about their weights.

    Args:
        channels: Number of channels, C.
        squeeze: Statistic of a channel: ``"mean"``, as published, or ``"std"``.
    """

    def __init__(self, channels: int, squeeze: str = "mean") -> None:
        super().__init__()
        self.squeeze = squeeze
        hidden = max(1, channels // REDUCTION)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        values = wide(z).flatten(2)
        s = values.mean(2) if self.squeeze == "mean" else (values.var(2, correction=0) + 1e-12).sqrt()
        weight: Tensor = self.gate[0].weight  # type: ignore[assignment]
        with torch.autocast(z.device.type, enabled=False):
            gate = self.gate(s.to(weight.dtype))
        return z * per_channel(gate, z).to(z.dtype)

    def extra_repr(self) -> str:
        return f"squeeze={self.squeeze}"
