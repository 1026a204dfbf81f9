"""Channel dropout in every convolutional block of the network, the baseline of DropGen's dropout of its input.

J. Tompson, R. Goroshin, A. Jain, Y. LeCun, C. Bregler, Efficient Object Localization Using Convolutional Networks, CVPR
2015, https://arxiv.org/abs/1411.4280 (SpatialDropout).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.hooks import Change
from nnunet_dg.method import Method, Paper, Student, TrainingModule, probability

LARGEST_P = 0.99
DROPOUT = {1: F.dropout1d, 2: F.dropout2d, 3: F.dropout3d}  # by the number of spatial axes


def drop_channels(feature: Tensor, p: float) -> Tensor:
    """Each channel of each sample is zeroed with probability p; the others are scaled by ``1 / (1 - p)``.

    With p = 0, the feature is returned as it is, and no random number is drawn.

    Args:
        feature: Feature map, ``(B, A, *spatial)``.
        p: Probability of dropping a channel, in [0, 1).

    >>> drop_channels(torch.ones(1, 2, 4), 0.0)
    tensor([[[1., 1., 1., 1.],
             [1., 1., 1., 1.]]])
    >>> drop_channels(torch.ones(50, 2, 4), 0.5).unique()
    tensor([0., 2.])
    """
    return DROPOUT[feature.ndim - 2](feature, p)


@dataclass(frozen=True)
class ChannelDropout(Method):
    """Channel dropout after each non-linearity of encoder and decoder, in training only.

    J. Tompson, R. Goroshin, A. Jain, Y. LeCun, C. Bregler, Efficient Object Localization Using Convolutional Networks,
    CVPR 2015, https://arxiv.org/abs/1411.4280. Logits are not dropped. The dropout option of nnU-Net's blocks is
    different: it drops before the norm, and an instance norm then removes the scaling of the kept channels.

    Attributes:
        p: Probability that a channel of a sample is dropped after a non-linearity. The DropGen paper, which compares
            with this method, does not publish its rate.
    """

    key: ClassVar[str] = "channel_dropout"
    slot: ClassVar[str] = "gradients and masks"
    paper: ClassVar[Paper] = Paper(
        "Efficient Object Localization Using Convolutional Networks",
        "Jonathan Tompson, Ross Goroshin, Arjun Jain, Yann LeCun, Christoph Bregler",
        "IEEE Conference on Computer Vision and Pattern Recognition (CVPR)",
        2015,
        "https://arxiv.org/abs/1411.4280",
    )

    p: float = probability(0.25, LARGEST_P)

    def training_module(self, student: Student) -> ChannelDropoutTraining:
        """The training module, which changes the output of every non-linearity."""
        return ChannelDropoutTraining(self, student)


class ChannelDropoutTraining(TrainingModule):
    """Drops channels after every non-linearity of the planned network, in every forward pass.

    PyTorch's dropout draws its numbers inside the compiled graph, so that nothing is drawn before a pass.

    Args:
        settings: Settings, see `ChannelDropout`.
        student: Network in training.
    """

    def __init__(self, settings: ChannelDropout, student: Student) -> None:
        super().__init__()
        self.settings = settings
        for activation in student.activations():
            Change(activation, self.dropped, always=True)

    def dropped(self, feature: Tensor) -> Tensor:
        """``(B, A, *spatial)`` with dropped channels."""
        return drop_channels(feature, self.settings.p)
