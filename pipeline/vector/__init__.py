"""Mask to polygons: trace, join across seams, attributes, files. Knows no torch, no Dask."""

from pipeline.vector.area import PixelAreas
from pipeline.vector.blocks import Hands, Piece
from pipeline.vector.mask_file import SCENE_TAG
from pipeline.vector.polygonize import polygonize
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
