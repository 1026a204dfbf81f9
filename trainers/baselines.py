"""Trainers of published baselines, each with the defaults of its method."""

from nnunet_dg.baselines.channel_dropout import ChannelDropout
from nnunet_dg.baselines.dsbn import DSBN
from nnunet_dg.baselines.gin import GIN
from nnunet_dg.baselines.mixstyle import MixStyle
from nnunet_dg.baselines.rsc import RSC
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerMixStyle(MethodsTrainer):
    """MixStyle in the first two encoder stages, with p = 0.5 and alpha = 0.1."""

    methods = (MixStyle(),)


class nnUNetTrainerGIN(MethodsTrainer):
    """GIN on every training image, with four random layers and two channels between them."""

    methods = (GIN(),)


class nnUNetTrainerRSC(MethodsTrainer):
    """RSC on half of the batches, with a fifth of the bottleneck's elements muted."""

    methods = (RSC(),)


class nnUNetTrainerChannelDropout(MethodsTrainer):
    """A quarter of the channels dropped after every non-linearity of the network."""

    methods = (ChannelDropout(),)


class nnUNetTrainerDSBN(MethodsTrainer):
    """Dual normalization: half of the images through Bezier curves, and a batch norm for each kind of curve."""

    methods = (DSBN(),)
