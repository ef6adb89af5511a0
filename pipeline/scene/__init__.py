"""Opening any input as a `Scene`: bands, validity, areas of interest, synthetic scenes. Knows no torch, no Dask."""

from typing import TYPE_CHECKING

from pipeline.lazy import lazily

if TYPE_CHECKING:
    from pipeline.scene.aoi import Aoi
    from pipeline.scene.array import ArrayScene
    from pipeline.scene.base import Band, Block, Scene
    from pipeline.scene.datasets import BLOCK_CACHE_BYTES, close_all, decode_on, limit_block_cache
    from pipeline.scene.describe import describe_scene
    from pipeline.scene.in_turn import decoded_bytes, shares_blocks
    from pipeline.scene.limits import Limits
    from pipeline.scene.open import open_scene
    from pipeline.scene.quality import QualityLayer, open_quality_layer
    from pipeline.scene.raster import RasterScene
    from pipeline.scene.synthetic import SyntheticScene, write_synthetic_scene

__all__ = [
    "BLOCK_CACHE_BYTES",
    "Aoi",
    "ArrayScene",
    "Band",
    "Block",
    "Limits",
    "QualityLayer",
    "RasterScene",
    "Scene",
    "SyntheticScene",
    "close_all",
    "decode_on",
    "decoded_bytes",
    "describe_scene",
    "limit_block_cache",
    "open_quality_layer",
    "open_scene",
    "shares_blocks",
    "write_synthetic_scene",
]

# GDAL, PROJ, xarray and SciPy take a second to load together; each is loaded with the first name that needs it.
_HOMES = {
    "BLOCK_CACHE_BYTES": "datasets",
    "Aoi": "aoi",
    "ArrayScene": "array",
    "Band": "base",
    "Block": "base",
    "Limits": "limits",
    "QualityLayer": "quality",
    "RasterScene": "raster",
    "Scene": "base",
    "SyntheticScene": "synthetic",
    "close_all": "datasets",
    "decode_on": "datasets",
    "decoded_bytes": "in_turn",
    "describe_scene": "describe",
    "limit_block_cache": "datasets",
    "open_quality_layer": "quality",
    "open_scene": "open",
    "shares_blocks": "in_turn",
    "write_synthetic_scene": "synthetic",
}

__getattr__ = lazily(__name__, _HOMES)
