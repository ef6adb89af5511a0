"""`make bench-vectors`: polygons of a realistic mask against other polygonizers, in one run, as ratios.

python -m tests.bench.vectors [--only speed workers] [--size 8192] [--repeats 3]

`speed` is on one core. Ours ends with Shapely polygons in pixel coordinates, the others with what they give by
themselves (rasterio: GeoJSON-like mappings; xarray-spatial: coordinate arrays). Attributes and files are left out on
both sides; compiled loops come from disk. There is no path without tiles: labels of 1024² pixels stay in the cache, and
the whole mask as one tile takes longer.

`workers` traces a mask file into a spool, attributes included, by two worker processes that are there already, and its
halves by two processes side by side that know nothing of each other.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
import psutil
import rasterio.features
from scipy import ndimage

from pipeline.grid import Window
from pipeline.run.settings import make_settings
from pipeline.run.tracers import local_hands
from pipeline.vector import polygonize
from pipeline.vector.join import iter_regions
from pipeline.vector.pieces import Cells
from tests.bench.common import OUT, interleaved, publish

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.vector import Hands

    Mask = NDArray[np.uint8]

_NODATA = 255
TITLE = "Polygons of an 8192² mask of six classes with 266,928 regions"


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
    """Measure and publish, part by part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=["workers", "speed"])
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if "workers" in given.only:
        measure_workers(given)
    if "speed" in given.only:
        measure_speed(given)


def traced(mask: Path, hands: Hands | None = None) -> int:
    """Polygons of a mask file, in a spool."""
    with polygonize(mask, scratch=OUT / "scratch", hands=hands) as polygons:
        return len(polygons)


def measure_workers(given: argparse.Namespace) -> None:
    """Two workers against two processes on the halves of a mask; by the clock and in CPU time."""
    from tests.bench.polygons import large_mask

    whole = large_mask(given.size)
    halves = [_half(whole, first) for first in (0, 1)]
    seconds: dict[str, list[tuple[float, float, float]]] = {"bare": [], "workers": []}
    with (
        ProcessPoolExecutor(2, get_context("spawn")) as bare,
        local_hands(make_settings({"workers": 2})) as hands,
    ):
        work = {"bare": lambda: list(bare.map(traced, halves)), "workers": lambda: traced(whole, hands)}
        for number in range(given.repeats + 1):
            for name, function in work.items():
                before, own, started = _children_s(), time.process_time(), time.perf_counter()
                found = function()
                took = time.perf_counter() - started, _children_s() - before, time.process_time() - own
                if number:  # the first one compiles
                    seconds[name].append(took)
                print(f"  round {number}  {name}: {took[0]:.1f} s, {took[1]:.1f} s of CPU", flush=True)
    best = {name: [min(column) for column in zip(*rounds, strict=True)] for name, rounds in seconds.items()}
    (bare_s, bare_cpu, _), (ours_s, ours_cpu, client_cpu) = best["bare"], best["workers"]
    rows = [
        (
            "two bare processes, a half each ÷ two workers",
            f"**{bare_s / ours_s:.2f}** ({bare_s:.2f} s ÷ {ours_s:.2f} s)",
            "≥ 0.85",
        ),
        (
            "— the same in CPU time, with that of the client",
            f"{bare_cpu / (ours_cpu + client_cpu):.2f} ({bare_cpu:.2f} s ÷ {ours_cpu + client_cpu:.2f} s)",
            "",
        ),
        ("— the client's part of it, Dask's scheduler included", f"{client_cpu:.2f} s", ""),
    ]
    command = f"python -m tests.bench.vectors --only workers --size {given.size} --repeats {given.repeats}"
    publish("vectors", TITLE, command, rows, {"seconds": seconds, "polygons": found}, part="workers")


def _half(whole: Path, number: int) -> Path:
    path = OUT / f"{whole.stem}-half-{number}.tif"
    with rasterio.open(whole) as file:
        rows = file.height // 2
        place = rasterio.windows.Window(0, number * rows, file.width, rows)
        profile = {**file.profile, "height": rows, "transform": file.window_transform(place)}
        with rasterio.open(path, "w", **profile) as half:
            half.write(file.read(1, window=place), 1)
    return path


def _children_s() -> float:
    """CPU time of the processes that this one has started."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def measure_speed(given: argparse.Namespace) -> None:
    """Against other polygonizers, on one core."""
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
        ("shapes", "rasterio.features.shapes", ("", "≥ 5; ≥ 3.5 through tiles")),
        ("spatial", "xarray-spatial's polygonizer", ("", "≥ 2.5")),
    ):
        for way, bar in zip(("whole", "tiles"), bars, strict=True):
            if peer in medians:
                ratio = f"**{medians[peer] / medians[way]:.2f}** ({medians[peer]:.2f} s ÷ {medians[way]:.2f} s)"
                label = "the whole as one tile" if way == "whole" else "as it always is, tiles of 1024 px and joining"
                rows.append((f"{name} ÷ ours, {label}", ratio, bar))
    command = f"python -m tests.bench.vectors --only speed --size {given.size} --repeats {given.repeats}"
    publish("vectors", TITLE, command, rows, {"medians_s": medians, "regions": count[0]}, part="speed")


if __name__ == "__main__":
    main()
