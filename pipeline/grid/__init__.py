"""Where things are: windows, tiles and geoboxes as pure integers and affine arithmetic."""

from pipeline.grid.geobox import GeoBox
from pipeline.grid.window import Window, iter_windows

__all__ = ["GeoBox", "Window", "iter_windows"]
