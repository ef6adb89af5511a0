"""Hashes of a finished raster tile by tile, short enough for `run.json`: they say which part of it was damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from pipeline.grid import iter_windows
from pipeline.store.digest import sha256_array
from pipeline.store.pyramid import to_rasterio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pipeline.grid import Window

_DIGITS = 16
"""Of a SHA-256: against damage, not against an attacker, who could change run.json as well."""
_EMPTY = "-"


def block_rows(digests: Mapping[int, str | None], *, columns: int) -> list[str]:
    """One line per row of tiles, 16 hex digits per tile, `-` for one without a valid pixel.

    Args:
        digests: Index of a tile, row-major -> SHA-256 of its pixels; None where it is empty. One for each tile.
        columns: Tiles per row.
    """
    short = [_EMPTY if (digest := digests[i]) is None else digest[:_DIGITS] for i in range(len(digests))]
    return [" ".join(short[i : i + columns]) for i in range(0, len(short), columns)]


def damaged_blocks(path: Path, rows: Sequence[str], *, tile_hw: tuple[int, int]) -> list[Window]:
    """Tiles of a finished raster whose pixels are not those recorded or cannot be read; all, if its shape is another.

    Args:
        path: `mask.tif` or `probabilities.tif`.
        rows: What `block_rows` gave.
        tile_hw: (height, width) of a tile.

    Raises:
        RasterioError: The file cannot be opened at all.
    """
    with rasterio.open(path, driver="GTiff") as source:
        windows = list(iter_windows(source.shape, tile_hw))
        known = [digest for row in rows for digest in row.split()]
        if len(known) != len(windows):
            return windows
        return list(_differing(source, windows, known))


def _differing(source: rasterio.DatasetReader, windows: Sequence[Window], known: Sequence[str]) -> Iterator[Window]:
    for window, digest in zip(windows, known, strict=True):
        try:
            pixels = np.asarray(source.read(window=to_rasterio(window)))
        except RasterioError:
            yield window
            continue
        same = (pixels == source.nodata).all() if digest == _EMPTY else sha256_array(pixels).startswith(digest)
        if not same:
            yield window
