"""DropGen: frozen stable features beside the image, and channel dropout over both (arXiv 2604.02564)."""

from nnunet_dg.dropgen.dropout import ChannelDropout, StructuredDropout
from nnunet_dg.dropgen.network import DropGenNetwork, build_dropgen_network
from nnunet_dg.dropgen.settings import DropGenSettings

__all__ = ["ChannelDropout", "DropGenNetwork", "DropGenSettings", "StructuredDropout", "build_dropgen_network"]
