"""Where things are: windows, tiles and geoboxes as pure integers and affine arithmetic."""

from pipeline.grid.geobox import GeoBox
from pipeline.grid.padding import Padding, source_index
from pipeline.grid.parts import balanced_core
from pipeline.grid.seams import near_seam
from pipeline.grid.split import halves, parts_for
from pipeline.grid.tiling import (
    Axis,
    Mode,
    Patch,
    SizeRule,
    Tile,
    Tiling,
    blend_tiling,
    exact_tiling,
    round_up,
)
from pipeline.grid.window import Window, iter_parts, iter_windows

__all__ = [
    "Axis",
    "GeoBox",
    "Mode",
    "Padding",
    "Patch",
    "SizeRule",
    "Tile",
    "Tiling",
    "Window",
    "balanced_core",
    "blend_tiling",
    "exact_tiling",
    "halves",
    "iter_parts",
    "iter_windows",
    "near_seam",
    "parts_for",
    "round_up",
    "source_index",
]
