"""DropGen: frozen stable features next to the image, and channel dropout over both (arXiv 2604.02564)."""

from nnunet_dg.dropgen.dropout import ChannelDropout, StructuredDropout
from nnunet_dg.dropgen.method import DropGen
from nnunet_dg.dropgen.network import DropGenNetwork, build_dropgen_network

DropGenSettings = DropGen

__all__ = [
    "ChannelDropout",
    "DropGen",
    "DropGenNetwork",
    "DropGenSettings",
    "StructuredDropout",
    "build_dropgen_network",
]
