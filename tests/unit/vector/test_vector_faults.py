"""Faults B13-B15, E6, E7, E11 and E12: many polygons, huge ones, formats with limits, others' locks, kills."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import example, given
from hypothesis import strategies as st
from rasterio.features import rasterize

from pipeline.errors import UsageError
from pipeline.vector import polygonize, to_geodataframe, write_polygons
from tests.properties.test_vector_law import masks
from tests.unit.vector.masks import NODATA, UTM, blobs, write_mask

FORMATS = ["geojson", "gpkg", "fgb", "parquet"]


def _read(path: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path, layer=0)


# Number of polygons; peak memory in MB over what the process held before: of tracing first, then of each file. Pages of
# the spool that were read count as memory while they are mapped, as many as the kernel likes: few may be.
MEASURE = """
import json, re, sys
from pathlib import Path
from pipeline.vector import polygonize, spool, write_polygons
spool._MOST_MAPPED = 4 << 20
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def measured(work):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    return work(), status("VmHWM") - before
mask, *outs = map(Path, sys.argv[1:])
polygonize(mask.with_name("warm.tif"), scratch=mask.parent).close()
polygons, peak = measured(lambda: polygonize(mask, scratch=mask.parent / "scratch"))
peaks = [peak, *(measured(lambda: write_polygons(polygons, out, overwrite=False))[1] for out in outs)]
print(json.dumps([len(polygons), peaks]))
polygons.close()
"""


def _measure(tmp_path: Path, mask: np.ndarray[Any, Any], *outs: Path) -> tuple[int, list[float]]:
    write_mask(tmp_path / "warm.tif", mask[:50, :50])
    path = write_mask(tmp_path / "m.tif", mask, tiled=True)
    run = subprocess.run([sys.executable, "-c", MEASURE, path, *outs], capture_output=True, text=True, check=True)
    count, peaks = json.loads(run.stdout)
    return count, peaks


def test_b13_geojson_of_many_polygons_is_never_whole_in_memory(tmp_path: Path) -> None:
    mask = np.full((1500, 1500), NODATA, np.uint8)
    mask[::3, ::3] = 1
    out = tmp_path / "out.geojson"
    count, (_, peak_mb) = _measure(tmp_path, mask, out)
    assert count == 250_000
    size_mb = out.stat().st_size / 2**20
    assert size_mb > 90
    assert peak_mb < 0.6 * size_mb


def test_b14_a_shapefile_is_refused_with_a_reason_and_a_way_out(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(10))
    with polygonize(path, scratch=tmp_path / "s") as polygons, pytest.raises(UsageError) as refused:
        write_polygons(polygons, tmp_path / "out.SHP", overwrite=False)
    text = str(refused.value)
    for part in ("CF-030", "10 characters", "2 GB", ".geojson .json .gpkg .fgb .parquet", "out.gpkg"):
        assert part in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tif", "s"]


# Another program: it has changed half of the file and goes on when a line comes in.
HOLD = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("PRAGMA journal_mode = " + sys.argv[2])
base.execute("PRAGMA cache_size = 1")  # what is changed goes to disk before the end of the transaction
names = [n for (n,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'out'")]
for name in names:  # they call functions that only GDAL has
    base.execute(f'DROP TRIGGER "{name}"')
for end in ("COMMIT", ""):
    base.execute("BEGIN IMMEDIATE")
    base.execute("UPDATE out SET class_name = class_name || ' and so on'")
    base.execute(end)
print(base.execute("SELECT count(*) FROM out").fetchone()[0], flush=True)
input()
print(base.execute("SELECT count(*) FROM out").fetchone()[0], flush=True)
"""


@contextmanager
def _held(path: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, path, mode], stdin=pipe, stdout=pipe, text=True) as other:
        try:
            yield other
        finally:
            other.kill()


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_b15_a_geopackage_locked_by_another_program_is_replaced(
    tmp_path: Path,
    mode: str,
    killed: bool,  # noqa: FBT001
) -> None:
    out = tmp_path / "out.gpkg"
    with polygonize(write_mask(tmp_path / "m.tif", blobs(90)), scratch=tmp_path / "s") as polygons:
        before = write_polygons(polygons, out, overwrite=False).num_polygons
    with (
        _held(out, mode) as other,
        polygonize(write_mask(tmp_path / "n.tif", blobs(150, sigma=2.0)), scratch=tmp_path / "s") as polygons,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        assert int(other.stdout.readline()) == before
        after = write_polygons(polygons, out, overwrite=True).num_polygons
        if killed:
            other.kill()
        else:
            print(file=other.stdin, flush=True)
            assert int(other.stdout.readline()) == before != after
        expected = to_geodataframe(polygons)
        with closing(sqlite3.connect(out)) as base:
            assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        frame = _read(out)
    assert frame["class_name"].tolist() == expected["class_name"].tolist()
    assert frame["id"].tolist() == expected["id"].tolist()


def test_e6_noise_stays_within_bounds(tmp_path: Path) -> None:
    """2 Mpx of salt and pepper."""
    mask = np.random.default_rng(0).integers(0, 2, (1024, 2048)).astype(np.uint8)
    count, (traced_mb, written_mb) = _measure(tmp_path, mask, tmp_path / "out.parquet")
    assert count > 250_000
    assert traced_mb < 600
    assert written_mb < 200


def test_e7_a_polygon_of_very_many_holes(tmp_path: Path) -> None:
    """One region around 90 000 others, 360 000 corners in all, in each format."""
    mask = np.ones((601, 601), np.uint8)
    mask[1::2, 1::2] = NODATA
    path = write_mask(tmp_path / "m.tif", mask)
    with polygonize(path, scratch=tmp_path / "s", tile_px=256) as polygons:
        assert len(polygons) == 1
        for suffix in FORMATS:
            out = write_polygons(polygons, tmp_path / f"out.{suffix}", overwrite=False)
            assert (out.num_polygons, out.num_dropped) == (1, 0)
            (polygon,) = _read(out.path).geometry
            assert shapely.get_num_interior_rings(polygon) == 90_000
            assert shapely.is_valid(polygon)
            if suffix != "geojson":
                assert polygon.area == 100 * (601**2 - 90_000)


def test_e7_a_checkerboard_is_all_single_pixels(tmp_path: Path) -> None:
    mask = (np.indices((300, 300)).sum(axis=0) % 2).astype(np.uint8)
    with polygonize(write_mask(tmp_path / "m.tif", mask), scratch=tmp_path / "s", tile_px=64) as polygons:
        assert len(polygons) == 90_000
        frame = to_geodataframe(polygons)
    assert (frame["area_px"] == 1).all()
    assert shapely.coverage_is_valid(frame.geometry.to_numpy())


# Small regions between large ones of other classes.
SPECKLED = np.array([[1, 0, 0, 0, 7], [0, 0, 2, 2, 2], [7, 7, 7, 1, 2], [7, 0, 7, 2, 2]], np.uint8)


@example(SPECKLED, {0, 1, 2, 7}, 250.0, 3)
@example(SPECKLED, {1, 2, 7}, 250.0, 9)
@given(masks(), st.sets(st.sampled_from([0, 1, 2, 7]), min_size=1), st.sampled_from([0.0, 250.0]), st.integers(1, 9))
def test_e11_attributes_belong_to_their_polygons(
    tmp_path_factory: pytest.TempPathFactory, mask: Any, include: set[int], least_m2: float, tile: int
) -> None:
    """Whatever was left out: under each polygon lie pixels of its class, as many as it says, and the name fits."""
    folder = tmp_path_factory.mktemp("e11")
    names = {0: "zero", 1: "one", 2: "two", 7: "seven"}
    options = {"include": frozenset(include), "names": names, "min_area_m2": least_m2, "tile_px": tile}
    with polygonize(write_mask(folder / "m.tif", mask), scratch=folder, **options) as polygons:
        path = write_polygons(polygons, folder / "out.parquet", overwrite=False).path
    for row in geopandas.read_parquet(path).itertuples():
        inside = rasterize([row.geometry], mask.shape, transform=UTM[1]) == 1
        assert set(mask[inside].tolist()) == {row.class_id} <= include
        assert row.class_name == names[row.class_id]
        assert row.area_px == inside.sum()
        assert row.area_m2 == pytest.approx(100 * inside.sum(), rel=2e-3)
        assert row.area_m2 >= least_m2


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.vector import polygonize, polygonset, write_polygons
mask, out, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
read = polygonset.PolygonSet.iter_batches
polygonset.PolygonSet.iter_batches = lambda self, *_, **options: read(self, 50, **options)
left = steps
def one_less():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
with polygonize(mask, scratch=out.parent / "scratch") as polygons:
    polygons.before_batch = one_less
    write_polygons(polygons, out, overwrite=True)
"""


@pytest.mark.parametrize("suffix", FORMATS)
def test_e12_a_kill_while_writing_leaves_no_file_of_that_name(tmp_path: Path, suffix: str) -> None:
    mask = write_mask(tmp_path / "m.tif", blobs(300, sigma=2.0))
    out = tmp_path / f"out.{suffix}"
    for older in (None, "older result"):
        if older:
            out.write_text(older)
        run = subprocess.run([sys.executable, "-c", KILLED, mask, out, "3"], capture_output=True, check=False)
        assert run.returncode == -9, run.stderr
        assert (out.read_text() if out.exists() else None) == older
    run = subprocess.run([sys.executable, "-c", KILLED, mask, out, "1000"], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(_read(out)) > 200
