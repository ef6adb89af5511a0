"""`make bench-polygons`: `scenemask vectorize` on large masks and on noise, as a process of its own.

python -m tests.bench.polygons [--only equal memory noise simplify geos]
    [--equal-size 16384] [--memory-size 32768] [--noise-size 4096] [--simplify-size 32768] [--geos-size 8192]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import rasterio
import rasterio.features
import shapely
from affine import Affine

from pipeline.vector.cracks import CrackMap
from pipeline.vector.join import iter_regions
from pipeline.vector.pieces import Cells
from pipeline.vector.rings import from_shapely
from tests.bench.common import OUT, publish
from tests.bench.vectors import realistic_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.vector.rings import Geometries

    Mask = NDArray[np.uint8]
    Rows = list[tuple[str, str, str]]

_NODATA = 255
_PIECE = 8192
_UTM = {"crs": "EPSG:32633", "transform": Affine(1, 0, 400_000, 0, -1, 5_800_000)}


def large_mask(side: int) -> Path:
    """The realistic mask, mirrored to and fro over a larger one: its regions go on across the seams."""
    path = OUT / f"mask-{side}.tif"
    if path.exists():
        return path
    piece = realistic_mask(min(side, _PIECE))
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": _NODATA, "height": side, "width": side}
    storage = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "DEFLATE", "num_threads": "ALL_CPUS"}
    with rasterio.open(path, "w", **profile, **storage, **_UTM) as file:
        for row in range(0, side, len(piece)):
            for col in range(0, side, len(piece)):
                flipped = piece[:: -1 if row // len(piece) % 2 else 1, :: -1 if col // len(piece) % 2 else 1]
                file.write(flipped, 1, window=rasterio.windows.Window(col, row, *piece.shape))
    return path


def noise_mask(side: int) -> Path:
    """Two classes by the toss of a coin: 389 000 polygons per Mpx."""
    path = OUT / f"noise-{side}.tif"
    data = np.random.default_rng(0).integers(0, 2, (side, side), dtype=np.uint8)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": side, "width": side, **_UTM}
    with rasterio.open(path, "w", **profile, tiled=True, compress="DEFLATE") as file:
        file.write(data, 1)
    return path


def vectorized(mask: Path, *options: str) -> tuple[int, float, float, str]:
    """(exit status, peak GB, seconds, what it said) of `scenemask vectorize`."""
    out, said = OUT / "polygons.parquet", OUT / "polygons.log"
    run = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    command = [*run, "vectorize", str(mask), "-o", str(out), "--overwrite", *options]
    started = time.perf_counter()
    with said.open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    return process.returncode, usage.ru_maxrss * 1024 / 1e9, seconds, said.read_text()


def measure_equal(side: int) -> tuple[Rows, dict[str, object]]:
    """Counts and areas against rasterio and Shapely on the whole mask."""
    path = large_mask(side)
    status, peak, seconds, said = vectorized(path)
    assert status == 0, said
    table = pq.read_table(OUT / "polygons.parquet", columns=["class_id", "area_px", "geometry"])
    with rasterio.open(path) as file:
        mask = file.read(1)
    started = time.perf_counter()
    counts, areas = np.zeros(256, np.int64), np.zeros(256)
    for shape, value in rasterio.features.shapes(mask, mask=mask != _NODATA, connectivity=4):
        counts[int(value)] += 1
        areas[int(value)] += shapely.geometry.shape(shape).area
    reference_s = time.perf_counter() - started
    ours = table.group_by("class_id").aggregate([("area_px", "sum"), ("area_px", "count")]).to_pydict()
    for value, pixels, count in zip(ours["class_id"], ours["area_px_sum"], ours["area_px_count"], strict=True):
        assert (count, pixels) == (counts[value], areas[value]), f"class {value} differs"
    assert sum(ours["area_px_count"]) == counts.sum()
    drawn = sum(
        float(shapely.area(shapely.from_wkb(chunk.to_numpy(zero_copy_only=False))).sum())
        for chunk in table.column("geometry").chunks
    )
    assert round(drawn) == pc.sum(table.column("area_px")).as_py()
    rows = [
        (
            f"{side}²: polygons and area of each class, against rasterio and Shapely on the whole mask",
            f"**equal**, {counts.sum():,} polygons",
            "equal",
        ),
        ("— `vectorize` to GeoParquet", f"{seconds:.0f} s, {peak:.2f} GB", ""),
        ("— rasterio and Shapely, areas only", f"{reference_s:.0f} s", ""),
    ]
    return rows, {"polygons": int(counts.sum()), "seconds": seconds, "peak_gb": peak, "reference_s": reference_s}


def measure_memory(side: int) -> tuple[Rows, dict[str, object]]:
    """Peak memory on a mask of a gigapixel."""
    status, peak, seconds, said = vectorized(large_mask(side))
    assert status == 0, said
    rows = [(f"{side}²: peak memory of `vectorize` to GeoParquet", f"**{peak:.2f} GB** ({seconds:.0f} s)", "≤ 1.5 GB")]
    return rows, {"seconds": seconds, "peak_gb": peak, "said": said}


def measure_noise(side: int) -> tuple[Rows, dict[str, object]]:
    """Salt and pepper: bounded memory, or a message."""
    path = noise_mask(side)
    rows: Rows = []
    facts: dict[str, object] = {}
    for options in ((), ("--min-area", "20 px"), ("--sieve", "--min-area", "20 px"), ("--simplify", "1 px")):
        status, peak, seconds, said = vectorized(path, *options)
        name = " ".join(options) or "as it is"
        facts[name] = {"status": status, "seconds": seconds, "peak_gb": peak, "said": said}
        outcome = said.strip().splitlines()[-1] if status == 0 else f"exit {status}: {said.splitlines()[0]}"
        outcome = outcome.replace(str(OUT / "polygons.parquet"), "file")
        rows.append(
            (f"coin tosses, {side}², {name}", f"{peak:.2f} GB, {seconds:.0f} s: {outcome}", "bounded, or a message")
        )
    return rows, facts


def measure_simplify(side: int) -> tuple[Rows, dict[str, object]]:
    """Simplified, smoothed, and both: peak memory and time of the whole command."""
    rows: Rows = []
    facts: dict[str, object] = {}
    for options in ((), ("--simplify", "1 px"), ("--smooth",), ("--smooth", "--simplify", "2 px")):
        status, peak, seconds, said = vectorized(large_mask(side), *options)
        assert status == 0, said
        name = " ".join(options) or "as traced"
        facts[name] = {"seconds": seconds, "peak_gb": peak, "said": said}
        rows.append(
            (f"{side}², {name}: peak memory of `vectorize`", f"**{peak:.2f} GB** ({seconds:.0f} s)", "≤ 1.5 GB")
        )
    return rows, facts


def measure_regularize(side: int) -> tuple[Rows, dict[str, object]]:
    """Straight walls for the regions of one class: peak memory."""
    status, peak, seconds, said = vectorized(large_mask(side), "--only", "1", "--regularize", "1")
    assert status == 0, said
    counts = said.strip().splitlines()[-1]
    measured = f"**{peak:.2f} GB** ({seconds:.0f} s): {counts}"
    rows = [(f"{side}², --only 1 --regularize 1: peak memory", measured, "≤ 1.5 GB")]
    return rows, {"seconds": seconds, "peak_gb": peak, "said": said}


def measure_geos(side: int) -> tuple[Rows, dict[str, object]]:
    """Ours against `shapely.coverage_simplify`, both from polygons to polygons in memory."""
    with rasterio.open(large_mask(side)) as file:
        mask = file.read(1)
    whole = iter_regions(
        lambda w: Cells(mask[w.slices_in(w)], mask != _NODATA), (side, side), tile_hw=(side, side), nodes=True
    )
    polygons = np.concatenate([regions.polygons for regions in whole])
    rows: Rows = []
    facts: dict[str, object] = {}
    for tolerance in (1.0, 3.0):
        took, corners = {}, {}
        for name, work in (("geos", _by_geos), ("ours", _by_us)):
            started = time.perf_counter()
            found = work(polygons, tolerance, side)
            took[name], corners[name] = time.perf_counter() - started, int(shapely.get_num_coordinates(found).sum())
            assert shapely.is_valid(found).all()
        assert shapely.coverage_is_valid(found)
        facts[f"{tolerance:g} px"] = {"seconds": took, "corners": corners}
        ratio, more = took["geos"] / took["ours"], corners["ours"] / corners["geos"] - 1
        seconds = f"**{ratio:.1f}** ({took['geos']:.1f} s ÷ {took['ours']:.1f} s)"
        rows += [
            (f"{side}², {len(polygons):,} polygons, {tolerance:g} px: coverage_simplify ÷ ours", seconds, "> 1"),
            ("— corners more than GEOS leaves", f"{100 * more:.1f} %", "≤ 20 %"),
        ]
    return rows, facts


def _by_geos(polygons: Geometries, tolerance: float, _: int) -> Geometries:
    return np.asarray(shapely.coverage_simplify(polygons, tolerance, simplify_boundary=True))


def _by_us(polygons: Geometries, tolerance: float, side: int) -> Geometries:
    rings, cracks = from_shapely(polygons), CrackMap(OUT / "bench.cracks", (side, side))
    cracks.draw(rings)
    return cracks.simpler(rings, smooth=False, limit=int(2 * tolerance**2)).to_shapely()


def main() -> None:
    """Measure and publish, part by part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=["equal", "memory", "noise", "simplify", "regularize", "geos"])
    parser.add_argument("--equal-size", type=int, default=16384)
    parser.add_argument("--memory-size", type=int, default=32768)
    parser.add_argument("--noise-size", type=int, default=4096)
    parser.add_argument("--simplify-size", type=int, default=32768)
    parser.add_argument("--regularize-size", type=int, default=16384)
    parser.add_argument("--geos-size", type=int, default=8192)
    given = parser.parse_args()
    measures = {
        "equal": measure_equal,
        "memory": measure_memory,
        "noise": measure_noise,
        "simplify": measure_simplify,
        "regularize": measure_regularize,
        "geos": measure_geos,
    }
    for kind in given.only:
        if (
            len(given.only) > 1
        ):  # a child's peak is at least what its parent holds, so each kind has a parent of its own
            sizes = [f"--{name}-size={getattr(given, f'{name}_size')}" for name in measures]
            subprocess.run([sys.executable, "-m", "tests.bench.polygons", "--only", kind, *sizes], check=True)
            continue
        side = getattr(given, f"{kind}_size")
        rows, facts = measures[kind](side)
        command = f"python -m tests.bench.polygons --only {kind} --{kind}-size {side}"
        publish("polygons", "Polygons of large masks, and of noise", command, rows, facts, part=kind)


if __name__ == "__main__":
    main()
