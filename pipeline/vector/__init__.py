"""Mask to polygons: trace, join across seams, attributes, files. Knows no torch, no Dask."""

from typing import TYPE_CHECKING

from pipeline.lazy import lazily

if TYPE_CHECKING:
    from pipeline.vector.area import PixelAreas
    from pipeline.vector.blocks import Hands, Piece
    from pipeline.vector.mask_file import SCENE_TAG
    from pipeline.vector.polygons import polygonize
    from pipeline.vector.polygonset import PolygonSet, to_geodataframe
    from pipeline.vector.regularize import Outcome, Regularization
    from pipeline.vector.simplify import Tolerance
    from pipeline.vector.write import WrittenPolygons, write_polygons

__all__ = [
    "SCENE_TAG",
    "Hands",
    "Outcome",
    "Piece",
    "PixelAreas",
    "PolygonSet",
    "Regularization",
    "Tolerance",
    "WrittenPolygons",
    "polygonize",
    "to_geodataframe",
    "write_polygons",
]

# pandas, GeoPandas, Arrow and GDAL's vector drivers take half a second to load, for runs that may want no polygons.
_HOMES = {
    "SCENE_TAG": "mask_file",
    "Hands": "blocks",
    "Outcome": "regularize",
    "Piece": "blocks",
    "PixelAreas": "area",
    "PolygonSet": "polygonset",
    "Regularization": "regularize",
    "Tolerance": "simplify",
    "WrittenPolygons": "write",
    "polygonize": "polygons",
    "to_geodataframe": "polygonset",
    "write_polygons": "write",
}

__getattr__ = lazily(__name__, _HOMES)
