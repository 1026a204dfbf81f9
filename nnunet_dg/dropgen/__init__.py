"""DropGen: frozen stable features next to the image, and channel dropout over both.

S. Diaz, P. Golland, E. Adalsteinsson, N. Dey, Why Invariance is Not Enough for Biomedical Domain Generalization and How
to Fix It, 2026, https://arxiv.org/abs/2604.02564.
"""

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
