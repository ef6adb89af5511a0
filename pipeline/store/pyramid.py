"""A raster and its overviews as temporary tiled GeoTIFFs, made band of rows by band of rows in bounded memory.

We make the overviews ourselves. GDAL's COG driver would write them to a temporary file with several threads, and a
disk that fills up meanwhile raises nothing: the result looks whole and its overviews are not. Ours are written by one
thread, which raises, and leave a hash that the finished file is compared with. Nor do they invent classes, whatever
the resampling defaults of the day.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.windows import Window as RasterioWindow

from pipeline.grid import Window, iter_windows
from pipeline.store.digest import pixel_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK_PX = 512
_BUFFER_BYTES = 32 << 20
_MAX_STRIP_PX = 32768
_MAX_BAND_PX = 4096

Pixels = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution of a raster on disk."""

    path: Path
    shape: tuple[int, int]
    """(height, width)."""
    sha256: str | None
    """Of an overview's pixels, in the order of `buffer_windows`; the ledger knows the full size better."""


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Shapes from full size down, each half the one before rounded up, until one block holds all."""
    shapes = [shape]
    while max(shapes[-1]) > BLOCK_PX:
        height, width = shapes[-1]
        shapes.append(((height + 1) // 2, (width + 1) // 2))
    return shapes


def buffer_windows(shape: tuple[int, int], pixel_nbytes: int) -> Iterator[Window]:
    """Windows of whole blocks that cover `shape` once, each at most a few tens of megabytes, however wide."""
    blocks_across = -(-min(shape[1], _MAX_STRIP_PX) // BLOCK_PX)
    while blocks_across > 1 and blocks_across * BLOCK_PX * BLOCK_PX * pixel_nbytes > _BUFFER_BYTES:
        blocks_across = -(-blocks_across // 2)
    width = blocks_across * BLOCK_PX
    height = min(_MAX_BAND_PX, max(1, _BUFFER_BYTES // (width * BLOCK_PX * pixel_nbytes)) * BLOCK_PX)
    return iter_windows(shape, (height, width))


def write_levels(
    base: Path,
    *,
    read: Callable[[Window], Pixels],
    halve: Callable[[Pixels], Pixels],
    profile: dict[str, Any],
    describe: Callable[[Any], None],
) -> list[Level]:
    """Write a raster and all its overviews.

    Args:
        base: File of the full resolution; overviews lie beside it.
        read: Window -> pixels `(band, y, x)`.
        halve: Pixels `(band, y, x)` -> half the size, rounded up.
        profile: What `rasterio.open` needs beyond the storage options: width, height, count, dtype, nodata, crs, ….
        describe: Called with the open full-resolution dataset, for colours, names and tags.

    Returns:
        The levels, full resolution first.

    Raises:
        RasterioError: A write failed.
    """
    pixel_nbytes = int(profile["count"]) * np.dtype(profile["dtype"]).itemsize
    levels: list[Level] = []
    for number, shape in enumerate(level_shapes((int(profile["height"]), int(profile["width"])))):
        path = base if number == 0 else base.with_name(f"{base.stem}.{number}.tif")
        source = _halved(levels[-1], halve) if levels else read
        size = {"height": shape[0], "width": shape[1]}
        # One thread: GDAL does not report a disk that fills up under several.
        with rasterio.open(path, "w", **{**profile, **size, **_STORAGE}) as out:
            if number == 0:
                describe(out)
            digest = hashlib.sha256()
            # A window of an overview costs its fourfold in source pixels.
            for window in buffer_windows(shape, pixel_nbytes if number == 0 else 4 * pixel_nbytes):
                pixels = source(window)
                if number > 0:
                    digest.update(pixel_bytes(pixels))
                out.write(pixels, window=to_rasterio(window))
        levels.append(Level(path=path, shape=shape, sha256=digest.hexdigest() if number > 0 else None))
    return levels


def write_vrt(path: Path, levels: Sequence[Level]) -> None:
    """A VRT that is the first level and offers the others as its overviews, so that one copy takes them all."""
    rasterio.shutil.copy(str(levels[0].path), str(path), driver="VRT")
    tree = ET.parse(path)  # noqa: S314 - GDAL has just written it
    for band in tree.getroot().findall("VRTRasterBand"):
        for level in levels[1:]:
            overview = ET.SubElement(band, "Overview")
            ET.SubElement(overview, "SourceFilename", relativeToVRT="1").text = level.path.name
            ET.SubElement(overview, "SourceBand").text = band.get("band")
    tree.write(path, encoding="utf-8")


def hash_level(path: Path, number: int) -> str:
    """SHA-256 of one overview of a finished file, as in `Level.sha256`; the first is 1.

    Raises:
        RasterioError: It cannot be read.
    """
    with rasterio.open(path, driver="GTiff", overview_level=number - 1) as source:
        digest = hashlib.sha256()
        pixel_nbytes = source.count * np.dtype(source.dtypes[0]).itemsize
        for window in buffer_windows(source.shape, 4 * pixel_nbytes):
            digest.update(pixel_bytes(source.read(window=to_rasterio(window))))
    return digest.hexdigest()


def to_rasterio(window: Window) -> RasterioWindow:
    """The same window, in rasterio's order."""
    return RasterioWindow(window.col_off, window.row_off, window.width, window.height)


def halve_mask(pixels: Pixels, nodata: int) -> Pixels:
    """Classes `(band, y, x)` at half size: the commonest valid value of each 2 x 2, on a tie the first.

    An odd last row or column counts by itself. Nodata only where all four are. Every value of the result stands in
    the four that it replaces.
    """
    a, b, c, d = _quarters(pixels)
    out = a.copy()
    # Most of a mask is the inside of regions: look closely only where the first value has no second of its kind.
    alone = (a != b) & (a != c) & (a != d)
    hole = a == nodata
    if hole.any():
        alone |= hole & ((b != nodata) | (c != nodata) | (d != nodata))
    if alone.any():
        out[alone] = _commonest(a[alone], b[alone], c[alone], d[alone], nodata)
    return out


def _commonest(a: Pixels, b: Pixels, c: Pixels, d: Pixels, nodata: int) -> Pixels:
    """The law of `halve_mask`, for columns of equal length."""
    out = np.where(a != nodata, a, np.where(b != nodata, b, np.where(c != nodata, c, d)))
    # Weakest claim first: a pair that begins earlier overrules one that begins later.
    np.copyto(out, c, where=(c == d) & (c != nodata))
    np.copyto(out, b, where=((b == c) | (b == d)) & (b != nodata))
    np.copyto(out, a, where=((a == b) | (a == c) | (a == d)) & (a != nodata))
    return out


def halve_mean(pixels: Pixels, nodata: int) -> Pixels:
    """uint8 `(band, y, x)` at half size: the mean of the valid of each 2 x 2, rounded half up; nodata without any."""
    total = np.zeros((), np.uint16)
    count = np.zeros((), np.uint16)
    for quarter in _quarters(pixels):
        valid = quarter != nodata
        total = total + np.where(valid, quarter, 0).astype(np.uint16)
        count = count + valid.astype(np.uint16)
    mean = (2 * total + count) // np.maximum(2 * count, 1)
    return np.where(count > 0, mean, nodata).astype(np.uint8)


_STORAGE: dict[str, Any] = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": BLOCK_PX,
    "blockysize": BLOCK_PX,
    "compress": "zstd",  # 0.5 s a gigapixel slower than none, and a mask shrinks to a twentieth
    "zstd_level": 1,
    "interleave": "band",
    "bigtiff": "IF_SAFER",
    "sparse_ok": True,
    "num_threads": 1,
}


def _quarters(pixels: Pixels) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """Upper left, upper right, lower left, lower right of each 2 x 2, contiguous; odd sides repeat their last line."""
    _, height, width = pixels.shape
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    a, b, c, d = (np.ascontiguousarray(pixels[:, y::2, x::2]) for y in (0, 1) for x in (0, 1))
    return a, b, c, d


def _halved(level: Level, halve: Callable[[Pixels], Pixels]) -> Callable[[Window], NDArray[Any]]:
    def read(window: Window) -> NDArray[Any]:
        whole = Window(row_off=0, col_off=0, height=level.shape[0], width=level.shape[1])
        doubled = Window(
            row_off=2 * window.row_off,
            col_off=2 * window.col_off,
            height=2 * window.height,
            width=2 * window.width,
        )
        with rasterio.open(level.path, driver="GTiff") as source:
            return halve(source.read(window=to_rasterio(doubled.intersect(whole))))

    return read
