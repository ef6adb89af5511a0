"""Which scenes one thread had better read for all tiles. Knows the kinds of scenes, not who reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.scene.raster import RasterScene
from pipeline.scene.rescale import RescaledScene
from pipeline.scene.sources import SourcesScene

if TYPE_CHECKING:
    from pipeline.scene.base import Scene


def shares_blocks(scene: Scene) -> bool:
    """Whether a thread that reads neighbouring windows decodes what they share once.

    GDAL keeps decoded blocks per open dataset, and a dataset belongs to one thread. Files behind a server are left out:
    several threads that wait for it get more than one.
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
