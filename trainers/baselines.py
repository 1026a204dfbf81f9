"""Trainers of published baselines, each with the defaults of its method."""

from nnunet_dg.baselines.crossnorm import CrossNorm
from nnunet_dg.baselines.dsu import DSU
from nnunet_dg.baselines.efdm import EFDM
from nnunet_dg.baselines.gin import GIN
from nnunet_dg.baselines.maxstyle import MaxStyle
from nnunet_dg.baselines.mixstyle import MixStyle
from nnunet_dg.baselines.rsc import RSC
from nnunet_dg.baselines.trid import TriD
from nnunet_dg.training.trainer import MethodsTrainer


class nnUNetTrainerMixStyle(MethodsTrainer):
    """MixStyle in the first two encoder stages, with p = 0.5 and alpha = 0.1."""

    methods = (MixStyle(),)


class nnUNetTrainerCrossNorm(MethodsTrainer):
    """Two-instance CrossNorm in the first two encoder stages, with p = 0.5."""

    methods = (CrossNorm(),)


class nnUNetTrainerDSU(MethodsTrainer):
    """DSU in the first two encoder stages, with p = 0.5."""

    methods = (DSU(),)


class nnUNetTrainerTriD(MethodsTrainer):
    """TriD in the first two encoder stages, with p = 0.5."""

    methods = (TriD(),)


class nnUNetTrainerEFDM(MethodsTrainer):
    """EFDMix in the first two encoder stages, with p = 0.5 and alpha = 0.1."""

    methods = (EFDM(),)


class nnUNetTrainerGIN(MethodsTrainer):
    """GIN on every training image, with four random layers and two channels between them."""

    methods = (GIN(),)


class nnUNetTrainerRSC(MethodsTrainer):
    """RSC on half of the batches, with a fifth of the bottleneck's elements muted."""

    methods = (RSC(),)


class nnUNetTrainerMaxStyle(MethodsTrainer):
    """MaxStyle in the first two encoder stages, with p = 0.5 and five steps of ascent."""

    methods = (MaxStyle(),)
