"""Synthetic volumes of random shapes in random contrasts, generated without any data.

A scene has a label map and textures (`scenes`). A view of it is an image in one contrast (`contrasts`) with the defects
of an acquisition (`defects`). `pairs` cuts two views of a scene from different places.
"""

from nnunet_dg.synthesis.draws import Draws
from nnunet_dg.synthesis.pairs import Pair, draw_pair

__all__ = ["Draws", "Pair", "draw_pair"]
