"""The methods of this package, by the name of their section in the plans."""

from __future__ import annotations

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
from nnunet_dg.dropgen import DropGen
from nnunet_dg.dropgen.finetune import AnatomixFinetune
from nnunet_dg.method import Method
from nnunet_dg.sgcg import SgCG
from nnunet_dg.tinymig import TinyMIG
from nnunet_dg.tinymig.teacher_model import Teacher

METHODS: dict[str, type[Method]] = {
    "dropgen": DropGen,
    "sgcg": SgCG,
    "tinymig": TinyMIG,
    "gin": GIN,
    "gin_ipa": GIN_IPA,
    "randconv": RandConv,
    "cutout": CutOut,
    "slaug": SLAug,
    "bigaug": BigAug,
    "mixup": MixUp,
    "mixstyle": MixStyle,
    "crossnorm": CrossNorm,
    "dsu": DSU,
    "trid": TriD,
    "efdm": EFDM,
    "rsc": RSC,
    "maxstyle": MaxStyle,
    "channel_dropout": ChannelDropout,
    "dsbn": DSBN,
    "feddg": FedDG,
    "jigen": JiGen,
    "c2sdg": C2SDG,
    "saml": SAML,
    "dofe": DoFE,
    "anatomix_finetune": AnatomixFinetune,
    "teacher": Teacher,
}
