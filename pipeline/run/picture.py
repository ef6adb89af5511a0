"""The scene's part of the preview, put together from samples that the tiles' tasks take: nothing is read twice for it.

A scene without overviews would have to be decoded whole once more, which costs more than all other finishing work.
"""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.report.preview import stretch_rgb
from pipeline.run.resolve import canonical_band
from pipeline.store import as_place

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import Window
    from pipeline.scene import Block, Scene
    from pipeline.store import Place

_LARGEST_PX = 1024
_FOLDER = "picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Where a scene is sampled: every `step`-th pixel of every `step`-th row, and which bands."""

    shape: tuple[int, int]
    """(height, width) of the scene."""
    step: int
    """Pixels between samples."""
    mean_of: int
    """Samples per side of a picture's pixel, whose mean takes off some of the roughness of sampling: 1 or 2."""
    bands: tuple[int, ...]
    """Positions in `scene.bands`: three for colour, or one for grey."""

    @classmethod
    def of(cls, scene: Scene) -> Picture:
        """At most 1024 px; red, green and blue where bands of these names exist, else the first bands."""
        longest = max(scene.geobox.shape)
        mean_of = 1 if longest <= _LARGEST_PX else 2
        step = math.ceil(longest / (mean_of * _LARGEST_PX))
        return cls(shape=scene.geobox.shape, step=step, mean_of=mean_of, bands=_display_bands(scene))

    @property
    def samples_hw(self) -> tuple[int, int]:
        """Samples down and across."""
        return -(-self.shape[0] // self.step), -(-self.shape[1] // self.step)

    @property
    def picture_hw(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        rows, cols = self.samples_hw
        return -(-rows // self.mean_of), -(-cols // self.mean_of)

    def save_part(self, where: Path | Place, core: Window, block: Block, outer: Window) -> None:
        """Keep the samples that lie in a tile's core.

        Args:
            where: Of the scratch store.
            core: The tile's core.
            block: What was read for it.
            outer: Where `block` lies; holds `core`.
        """
        rows, cols = (
            self._samples(core.row_off, core.row_stop, axis=0),
            self._samples(core.col_off, core.col_stop, axis=1),
        )
        if not len(rows) or not len(cols):
            return
        place = (slice(None), self._pixels(rows, outer.row_off, axis=0), self._pixels(cols, outer.col_off, axis=1))
        valid = np.ones((len(rows), len(cols)), bool) if block.all_valid else block.valid[place].all(axis=0)
        content = io.BytesIO()
        np.savez(content, rows=rows, cols=cols, data=block.data[place][list(self.bands)], valid=valid)
        parts = as_place(where) / _FOLDER
        parts.make()
        parts.write(f"{core.row_off}-{core.col_off}.npz", content.getvalue())

    def assemble(self, where: Path | Place) -> NDArray[np.uint8]:
        """`(y, x, 3)`, contrast stretched; what no tile has sampled (outside an area of interest) looks like nodata."""
        pixels = np.full((len(self.bands), *self.samples_hw), np.nan, np.float32)
        for content in (as_place(where) / _FOLDER).read_all(".npz"):
            try:
                with np.load(io.BytesIO(content)) as part:
                    place = (slice(None), *(slice(part[of][0], part[of][-1] + 1) for of in ("rows", "cols")))
                    pixels[place] = np.where(part["valid"], part["data"], np.float32(np.nan))
            except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
                continue  # a blank spot in a preview is no reason to compute a tile again
        small = self._mean(pixels)
        valid: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(small), axis=0)
        return stretch_rgb(small, valid)

    def _mean(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each pixel of the picture from its samples, those that are valid."""
        if self.mean_of == 1:
            return pixels
        height, width = self.picture_hw
        grown = ((0, 0), (0, 2 * height - pixels.shape[1]), (0, 2 * width - pixels.shape[2]))
        padded = np.pad(pixels, grown, constant_values=np.nan)
        total = np.zeros((len(padded), height, width), np.float32)
        count = np.zeros((len(padded), height, width), np.uint8)
        for quarter in (padded[:, y::2, x::2] for y in (0, 1) for x in (0, 1)):
            usable = np.isfinite(quarter)
            np.add(total, quarter, out=total, where=usable)
            count += usable
        with np.errstate(invalid="ignore"):  # no sample at all: 0 / 0 is the NaN that is wanted
            return np.divide(total, count, dtype=np.float32)

    def _samples(self, start: int, stop: int, *, axis: int) -> NDArray[np.int64]:
        """Numbers of the samples whose pixel lies in [start, stop)."""
        lead = self._lead(axis)
        first, end = (max(0, -(-(edge - lead) // self.step)) for edge in (start, stop))
        return np.arange(first, min(end, self.samples_hw[axis]))

    def _pixels(self, samples: NDArray[np.int64], start: int, *, axis: int) -> slice:
        """Where these samples lie in a block that begins at `start`."""
        first = int(samples[0]) * self.step + self._lead(axis) - start
        return slice(first, first + (len(samples) - 1) * self.step + 1, self.step)

    def _lead(self, axis: int) -> int:
        """First pixel sampled: the middle of a step, unless the last step is cut off before its middle."""
        size = self.shape[axis]
        return min(self.step // 2, (size - 1) % self.step)


def _display_bands(scene: Scene) -> tuple[int, ...]:
    names = {canonical_band(name): i for i, band in enumerate(scene.bands) for name in (band.color, band.name)}
    if all(color in names for color in ("red", "green", "blue")):
        return names["red"], names["green"], names["blue"]
    return (0, 1, 2) if len(scene.bands) > 2 else (0,)  # noqa: PLR2004
