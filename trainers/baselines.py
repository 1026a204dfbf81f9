"""Trainers of published baselines, each with the defaults of its method."""

from nnunet_dg.baselines.bigaug import BigAug
from nnunet_dg.baselines.c2sdg import C2SDG
from nnunet_dg.baselines.channel_dropout import ChannelDropout
from nnunet_dg.baselines.crossnorm import CrossNorm
from nnunet_dg.baselines.cutout import CutOut
from nnunet_dg.baselines.dofe import DoFE
from nnunet_dg.baselines.dsbn import DSBN
from nnunet_dg.baselines.dsu import DSU
from nnunet_dg.baselines.efdm import EFDM
from nnunet_dg.baselines.feddg import FedDG
from nnunet_dg.baselines.gin import GIN
from nnunet_dg.baselines.gin_ipa import GIN_IPA
from nnunet_dg.baselines.jigen import JiGen
from nnunet_dg.baselines.maxstyle import MaxStyle
from nnunet_dg.baselines.mixstyle import MixStyle
from nnunet_dg.baselines.mixup import MixUp
from nnunet_dg.baselines.randconv import RandConv
from nnunet_dg.baselines.rsc import RSC
from nnunet_dg.baselines.saml import SAML
from nnunet_dg.baselines.slaug import SLAug
from nnunet_dg.baselines.trid import TriD
from nnunet_dg.sgcg import SgCG
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
    """EFDMix in the encoder stages 1 and 2, with p = 0.5 and alpha = 0.1."""

    methods = (EFDM(),)


class nnUNetTrainerGIN(MethodsTrainer):
    """GIN on every training image, with four random layers and two channels between them."""

    methods = (GIN(),)


class nnUNetTrainerGIN_IPA(MethodsTrainer):
    """GIN's images blended by random masks, and trained to give the same prediction in three versions."""

    methods = (GIN_IPA(),)


class nnUNetTrainerRandConv(MethodsTrainer):
    """RandConv: half of the batches pass through one random convolution."""

    methods = (RandConv(),)


class nnUNetTrainerCutOut(MethodsTrainer):
    """CutOut: half of the samples have a hole in image and label, a third of the patch along each axis."""

    methods = (CutOut(),)


class nnUNetTrainerSLAug(MethodsTrainer):
    """SLAug: one version of each image with a global map, and one fused with a map for each class."""

    methods = (SLAug(),)


class nnUNetTrainerBigAug(MethodsTrainer):
    """BigAug's nine transforms, each with probability 0.5, in place of nnU-Net's augmentation."""

    methods = (BigAug(),)


class nnUNetTrainerMixUp(MethodsTrainer):
    """MixUp of three quarters of the batches, with shares from Beta(0.4, 0.4)."""

    methods = (MixUp(),)


class nnUNetTrainerRSC(MethodsTrainer):
    """RSC on half of the batches, with a fifth of the bottleneck's elements muted."""

    methods = (RSC(),)


class nnUNetTrainerMaxStyle(MethodsTrainer):
    """MaxStyle in the first two encoder stages, with p = 0.5 and five steps of ascent."""

    methods = (MaxStyle(),)


class nnUNetTrainerChannelDropout(MethodsTrainer):
    """A quarter of the channels dropped after every non-linearity of the network."""

    methods = (ChannelDropout(),)


class nnUNetTrainerDSBN(MethodsTrainer):
    """Dual normalization: half of the images through Bezier curves, and a batch norm for each kind of curve."""

    methods = (DSBN(),)


class nnUNetTrainerRAM(MethodsTrainer):
    """RAM-DSIR: SgCG's amplitude-mixed images, consistency and restoration, without its contrast."""

    methods = (SgCG(contrast=0.0),)


class nnUNetTrainerFedDG(MethodsTrainer):
    """FedDG's episodic learning and border contrast on batches of all domains, without federation."""

    methods = (FedDG(),)


class nnUNetTrainerJiGen(MethodsTrainer):
    """JiGen: a tenth of the images are shown with their tiles in one of 31 orders, which must be recognized."""

    methods = (JiGen(),)


class nnUNetTrainerC2SDG(MethodsTrainer):
    """C2SDG: content and style channels of the first stage, from three versions of each image."""

    methods = (C2SDG(),)


class nnUNetTrainerSAML(MethodsTrainer):
    """SAML: a step of gradient descent on two domains, and losses of shape on a third."""

    methods = (SAML(),)


class nnUNetTrainerDoFE(MethodsTrainer):
    """DoFE: a memory of the source domains at the bottleneck, in training and at inference."""

    methods = (DoFE(),)
