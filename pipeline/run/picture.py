"""A small picture of a scene, whatever it was opened from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid import Window
from pipeline.report.preview import overview_shape, read_overview_rgb, stretch_rgb
from pipeline.run.resolve import canonical_band
from pipeline.scene import RasterScene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.scene import Scene

_BAND_ROWS = 512


def scene_picture(scene: Scene, *, max_px: int) -> NDArray[np.uint8]:
    """`(y, x, 3)`, stretched; red, green and blue where bands of these names exist, else the first bands.

    Args:
        scene: Any scene.
        max_px: The longer side, at most.
    """
    chosen = _display_bands(scene)
    if isinstance(scene, RasterScene):
        return read_overview_rgb(scene.path, [scene.bands[i].index for i in chosen], max_px=max_px)
    height, width = overview_shape(scene.geobox.shape, max_px)
    rows = np.minimum((np.arange(height) * scene.geobox.height) // height, scene.geobox.height - 1)
    cols = np.minimum((np.arange(width) * scene.geobox.width) // width, scene.geobox.width - 1)
    pixels = np.zeros((len(chosen), height, width), scene.dtype)
    valid = np.zeros((height, width), bool)
    for start in range(0, scene.geobox.height, _BAND_ROWS):
        stop = min(start + _BAND_ROWS, scene.geobox.height)
        here = (rows >= start) & (rows < stop)
        if here.any():
            block = scene.read_block(Window.from_bounds(start, 0, stop, scene.geobox.width))
            pixels[:, here] = block.data[chosen][:, rows[here] - start][:, :, cols]
            valid[here] = block.valid_everywhere()[rows[here] - start][:, cols]
    return stretch_rgb(pixels, valid)


def _display_bands(scene: Scene) -> list[int]:
    """Positions in `scene.bands`: three for colour, or one for grey."""
    names = {canonical_band(name): i for i, band in enumerate(scene.bands) for name in (band.color, band.name)}
    if all(color in names for color in ("red", "green", "blue")):
        return [names[color] for color in ("red", "green", "blue")]
    return [0, 1, 2] if len(scene.bands) > 2 else [0]  # noqa: PLR2004
