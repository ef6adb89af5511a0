"""Polygons of a realistic mask against GDAL on the whole of it, from file to file; and what that costs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from pyproj import Geod

from pipeline.vector import polygonize, write_polygons
from tests.unit.vector.masks import GRIDS, NODATA, blobs, write_mask

if TYPE_CHECKING:
    from pathlib import Path


def _norm(geometries: np.ndarray[tuple[int, ...], np.dtype[np.object_]]) -> list[bytes]:
    return [bytes(wkb) for wkb in shapely.to_wkb(shapely.normalize(geometries))]


@pytest.mark.parametrize("grid", ["utm", "south-up"])
def test_geoparquet_equals_gdal_on_the_whole_mask(tmp_path: Path, grid: str) -> None:
    crs, transform = GRIDS[grid]
    mask = blobs(700, sigma=3.0, seed=7)
    path = write_mask(tmp_path / "m.tif", mask, crs=crs, transform=transform, tiled=True, compress="deflate")
    with polygonize(path, scratch=tmp_path, tile_px=256) as polygons:
        write_polygons(polygons, tmp_path / "out.parquet", overwrite=False)
    frame = geopandas.read_parquet(tmp_path / "out.parquet")
    shapes = list(rasterio.features.shapes(mask, mask=mask != NODATA, connectivity=4, transform=transform))
    reference = np.array([shapely.geometry.shape(s) for s, _ in shapes], object)
    expected = set(zip([int(v) for _, v in shapes], _norm(reference), strict=True))
    assert set(zip(frame["class_id"].tolist(), _norm(frame.geometry.to_numpy()), strict=True)) == expected
    geod = Geod(ellps="WGS84")
    to_lonlat = frame.to_crs("EPSG:4326").geometry
    areas = np.array([abs(geod.geometry_area_perimeter(g)[0]) for g in to_lonlat])
    np.testing.assert_allclose(frame["area_m2"], areas, rtol=1e-3)


MEASURE = """
import json, re, sys, time
from pathlib import Path
import rasterio, rasterio.features
from pipeline.vector import polygonize, write_polygons
path = Path(sys.argv[1])
if sys.argv[2] == "reference":
    with rasterio.open(path) as file:
        mask = file.read(1)
    start = time.process_time()
    count = sum(1 for _ in rasterio.features.shapes(mask, connectivity=4))
else:
    start = time.process_time()
    with polygonize(path, scratch=path.parent / "scratch", tile_px=1024) as polygons:
        count = len(polygons)
        if sys.argv[2] != "polygonize":
            start = time.process_time()
            write_polygons(polygons, path.with_suffix(sys.argv[2]), overwrite=True)
peak_mb = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"cpu_s": time.process_time() - start, "peak_mb": peak_mb, "count": count}))
"""


@pytest.mark.slow
def test_cost_of_a_4096_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CPU seconds and peak memory, each in a process of its own, best of three."""
    mask = blobs(4096, sigma=10.5)
    mask[mask == NODATA] = 0
    path = write_mask(tmp_path / "m.tif", mask, tiled=True, compress="zstd", blockxsize=512, blockysize=512)
    best: dict[str, dict[str, float]] = {}
    for what in ["reference", "polygonize", ".geojson", ".gpkg", ".fgb", ".parquet"] * 3:
        run = subprocess.run([sys.executable, "-c", MEASURE, path, what], capture_output=True, text=True, check=True)
        result = json.loads(run.stdout)
        best[what] = min(result, best.get(what, result), key=lambda r: r["cpu_s"])
    with capsys.disabled():
        sys.stdout.write(f"\n{best['polygonize']['count']} polygons\n")
        for what, result in best.items():
            ratio = result["cpu_s"] / best["reference"]["cpu_s"]
            sys.stdout.write(f"{what:10s} {result['cpu_s']:.2f} s  {ratio:.2f}x  peak {result['peak_mb']:.0f} MB\n")
    assert len({result["count"] for result in best.values()}) == 1
    assert best["polygonize"]["cpu_s"] < 3 * best["reference"]["cpu_s"]
    assert best["polygonize"]["peak_mb"] < 500
