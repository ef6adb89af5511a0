"""Which scenes one thread had better read for all tiles, and what it decodes. Knows the kinds of scenes, not who reads.

GDAL keeps decoded blocks per open dataset, and a dataset belongs to one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.scene.raster import RasterScene
from pipeline.scene.rescale import RescaledScene
from pipeline.scene.sources import SourcesScene

if TYPE_CHECKING:
    from pipeline.grid import Window
    from pipeline.scene.base import Scene


def shares_blocks(scene: Scene) -> bool:
    """Whether a thread that reads neighbouring windows decodes what they share once.

    Files behind a server are left out: several threads that wait for it get more than one.
    """
    match scene:
        case RasterScene():
            return scene.remote is None
        case RescaledScene():
            return shares_blocks(scene.scene)
        case SourcesScene():
            return all(shares_blocks(part.scene) for part in scene.needed())
        case _:
            return False


def decoded_bytes(scene: Scene, window: Window) -> int:
    """Bytes of the blocks that are decoded for a window of a scene of which `shares_blocks` holds; 0 for the others."""
    match scene:
        case RasterScene():
            return scene.decoded_bytes(window)
        case RescaledScene():
            return decoded_bytes(scene.scene, window)
        case SourcesScene():
            read = ((part.scene, part.source_window(window)) for part, _ in scene.wanted())
            return sum(decoded_bytes(source, found) for source, found in read if found is not None)
        case _:
            return 0
