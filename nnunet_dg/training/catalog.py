"""The methods of this package, by the name of their section in the plans."""

from __future__ import annotations

from nnunet_dg.baselines.channel_dropout import ChannelDropout
from nnunet_dg.baselines.dsbn import DSBN
from nnunet_dg.baselines.gin import GIN
from nnunet_dg.baselines.mixstyle import MixStyle
from nnunet_dg.baselines.rsc import RSC
from nnunet_dg.dropgen import DropGen
from nnunet_dg.dropgen.finetune import AnatomixFinetune
from nnunet_dg.method import Method
from nnunet_dg.sgcg import SgCG
from nnunet_dg.tinymig import TinyMIG

METHODS: dict[str, type[Method]] = {
    "dropgen": DropGen,
    "sgcg": SgCG,
    "tinymig": TinyMIG,
    "gin": GIN,
    "mixstyle": MixStyle,
    "rsc": RSC,
    "channel_dropout": ChannelDropout,
    "dsbn": DSBN,
    "anatomix_finetune": AnatomixFinetune,
}
