"""`make bench-vectors`: polygons of a realistic mask against other polygonizers, in one run, as ratios.

python -m tests.bench.vectors [--size 8192] [--repeats 3]

Ours ends with Shapely polygons in pixel coordinates, the others with what they give by themselves (rasterio:
GeoJSON-like mappings; xarray-spatial: coordinate arrays). Attributes and files are left out on both sides; compiled
loops come from disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from typing import TYPE_CHECKING

import numpy as np
import rasterio.features
from scipy import ndimage

from pipeline.grid import Window
from pipeline.vector.join import iter_regions
from pipeline.vector.seams import Cells
from tests.bench.common import OUT, interleaved, publish

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.uint8]

_NODATA = 255


def realistic_mask(side: int) -> Mask:
    """Six classes in large patches with ragged borders and speckles, a corner of nodata; 4 000 regions per Mpx."""
    path = OUT / f"mask-{side}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    rng = np.random.default_rng(0)
    best, mask = np.full((side, side), -np.inf, np.float32), np.zeros((side, side), np.uint8)
    for value in range(6):
        coarse = ndimage.gaussian_filter(rng.standard_normal((side // 8, side // 8), dtype=np.float32), 4)
        fine = ndimage.gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 2.5)
        field = ndimage.zoom(coarse / coarse.std(), 8, order=1) + 0.33 * fine / fine.std()
        mask[field > best] = value
        best = np.maximum(best, field)
    mask[: side // 8, : side // 6] = _NODATA
    np.save(path, mask)
    return mask


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for all
    mask = realistic_mask(given.size)
    valid, count = mask != _NODATA, [0]

    def ours(tile_px: int) -> float:
        started, whole = time.perf_counter(), Window.from_bounds(0, 0, *mask.shape)

        def read(window: Window) -> Cells:
            block = mask[window.slices_in(whole)]
            return Cells(block, block != _NODATA)

        shape = mask.shape[0], mask.shape[1]
        count[0] = sum(len(found.polygons) for found in iter_regions(read, shape, tile_hw=(tile_px, tile_px)))
        return time.perf_counter() - started

    def shapes() -> float:
        started = time.perf_counter()
        found = sum(1 for _ in rasterio.features.shapes(mask, mask=valid, connectivity=4))
        assert found == count[0]
        return time.perf_counter() - started

    def spatial() -> float:
        import xarray as xr
        from xrspatial.experimental.polygonize import polygonize

        started = time.perf_counter()
        polygonize(xr.DataArray(mask.astype(np.int32)), mask=xr.DataArray(valid), connectivity=4, return_type="numpy")
        return time.perf_counter() - started

    work = {"whole": lambda: ours(given.size), "tiles": lambda: ours(1024), "shapes": shapes}
    if importlib.util.find_spec("xrspatial"):
        work["spatial"] = spatial
        spatial()  # compiles
    ours(1024), ours(given.size)
    medians = {name: values[0] for name, values in interleaved(given.repeats, **work).items()}
    rows = []
    for peer, name, bars in (
        ("shapes", "rasterio.features.shapes", ("≥ 5", "≥ 3.5")),
        ("spatial", "xarray-spatial's polygonizer", ("≥ 2.5", "")),
    ):
        for way, bar in zip(("whole", "tiles"), bars, strict=True):
            if peer in medians:
                ratio = f"**{medians[peer] / medians[way]:.2f}** ({medians[peer]:.2f} s ÷ {medians[way]:.2f} s)"
                label = "in one piece" if way == "whole" else "through tiles of 1024 px and joining"
                rows.append((f"{name} ÷ ours, {label}", ratio, bar))
    title = f"Polygons of a {given.size}² mask of six classes with {count[0]:,} regions, one core"
    command = f"make bench-vectors (--size {given.size} --repeats {given.repeats})"
    publish("vectors", title, command, rows, {"medians_s": medians, "regions": count[0]})


if __name__ == "__main__":
    main()
