"""Files: what is read back is what was found, and nothing half written has the final name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import rasterio.features
import shapely

from pipeline.errors import OutputError, ResourceError, UsageError
from pipeline.vector import polygonize, to_geodataframe, write_polygons
from pipeline.vector import write as write_module
from tests.unit.vector.masks import GRIDS, NODATA, blobs, write_mask

FORMATS = ["geojson", "json", "gpkg", "fgb", "parquet"]
IN_CRS = ["gpkg", "fgb", "parquet"]
COLUMNS = {
    "id", "class_id", "class_name", "area_m2", "area_px", "perimeter_m", "touches_border", "touches_nodata", "scene",
    "geometry",
}  # fmt: skip


def _read(path: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


def _by_id(frame: geopandas.GeoDataFrame) -> dict[str, Any]:
    rows = zip(
        frame["id"], frame["class_id"], frame["class_name"], frame["area_m2"], frame["area_px"],
        frame.geometry.normalize(), strict=True,
    )  # fmt: skip
    return {identity: rest for identity, *rest in rows}


@pytest.mark.parametrize("suffix", IN_CRS)
@pytest.mark.parametrize("grid", ["utm", "geographic", "polar", "rotated", "south-up"])
def test_formats_in_the_scenes_crs_read_back_equal(tmp_path: Path, suffix: str, grid: str) -> None:
    crs, transform = GRIDS[grid]
    mask = blobs(60)
    path = write_mask(tmp_path / "m.tif", mask, crs=crs, transform=transform)
    with polygonize(path, scratch=tmp_path, names={1: 'Wäld "x"'}) as polygons:
        written = write_polygons(polygons, tmp_path / f"out.{suffix}", overwrite=False)
        expected = to_geodataframe(polygons)
    frame = _read(written.path)
    assert written.num_polygons == len(frame) == len(expected)
    assert written.num_dropped == 0
    assert frame.crs == expected.crs == crs
    assert set(frame.columns) >= COLUMNS
    assert _by_id(frame) == _by_id(expected)
    # The reference, drawn by GDAL with the scene's own transform.
    shapes = rasterio.features.shapes(mask, mask=mask != NODATA, connectivity=4, transform=transform)
    area = sum(shapely.geometry.shape(s).area for s, _ in shapes)
    assert shapely.area(frame.geometry.to_numpy()).sum() == pytest.approx(area)
    drawn = rasterio.features.rasterize(
        zip(frame.geometry, frame["class_id"], strict=True), out_shape=mask.shape, transform=transform, fill=NODATA,
        dtype="uint8",
    )  # fmt: skip
    np.testing.assert_array_equal(drawn, mask)
    assert shapely.is_ccw(shapely.get_exterior_ring(frame.geometry.to_numpy())).all()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("crs", ["EPSG:32633", None])
def test_c20_e10_empty_sets_give_valid_files(tmp_path: Path, suffix: str, crs: str | None) -> None:
    path = write_mask(tmp_path / "m.tif", np.full((9, 9), NODATA, np.uint8), crs=crs)
    with polygonize(path, scratch=tmp_path) as polygons:
        assert len(to_geodataframe(polygons)) == 0
        assert polygons.pixels_by_class == {}
        written = write_polygons(polygons, tmp_path / f"out.{suffix}", overwrite=False)
    assert written.num_polygons == 0
    if suffix in {"geojson", "json"}:
        content = json.loads(written.path.read_text())
        assert content["type"] == "FeatureCollection"
        assert content["features"] == []
        assert pyogrio.read_info(written.path)["features"] == 0
        return
    frame = _read(written.path)
    assert len(frame) == 0
    assert set(frame.columns) == COLUMNS | ({"bbox"} if suffix == "parquet" and "bbox" in frame.columns else set())
    assert (frame.crs is None) if crs is None else (frame.crs == crs)


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_crs_all_formats_hold_null_areas(tmp_path: Path, suffix: str) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(30), crs=None)
    with polygonize(path, scratch=tmp_path) as polygons:
        written = write_polygons(polygons, tmp_path / f"out.{suffix}", overwrite=False)
        expected = to_geodataframe(polygons)
    frame = _read(written.path)
    assert frame["area_m2"].isna().all()
    np.testing.assert_array_equal(np.sort(frame["area_px"]), np.sort(expected["area_px"]))
    assert {g.wkb for g in frame.geometry.normalize()} == {g.wkb for g in expected.geometry.normalize()}
    if suffix in {"geojson", "json"}:
        content = json.loads(written.path.read_text())
        assert content["scenemask:crs"] is None
        assert "not RFC 7946" in content["scenemask:crs_note"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_masks_give_equal_bytes_whatever_the_tiles(tmp_path: Path, suffix: str) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(120))
    digests = set()
    for tile_px in (23, 64, 500):
        with polygonize(path, scratch=tmp_path, tile_px=tile_px) as polygons:
            out = tmp_path / str(tile_px) / f"out.{suffix}"
            write_polygons(polygons, out, overwrite=False)
            digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_geoparquet_says_what_it_is(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(80))
    with polygonize(path, scratch=tmp_path) as polygons:
        out = write_polygons(polygons, tmp_path / "out.parquet", overwrite=False).path
    file = pq.ParquetFile(out)
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert geo["version"] == "1.1.0"
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633}
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    whole = geopandas.read_parquet(out)
    x, y = GRIDS["utm"][1] @ (40.0, 40.0)
    part = geopandas.read_parquet(out, bbox=(x - 1, y - 1, x + 1, y + 1))
    assert 0 < len(part) < len(whole)
    assert set(part["id"]) == set(whole["id"][whole.intersects(shapely.box(x - 1, y - 1, x + 1, y + 1))]) | set(
        part["id"]
    )
    np.testing.assert_array_equal([tuple(b.values()) for b in file.read()["bbox"].to_pylist()], whole.bounds)


def test_many_batches_make_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches and spool parts: order and content stay."""
    path = write_mask(tmp_path / "m.tif", blobs(100))
    outs = []
    for rows in (16384, 5):
        monkeypatch.setattr("pipeline.vector.spool._FLUSH_ROWS", rows)
        monkeypatch.setattr("pipeline.vector.polygonset.PolygonSet.iter_batches.__defaults__", (rows,))
        monkeypatch.setattr(write_module, "_GROUP_ROWS", rows)
        with polygonize(path, scratch=tmp_path, tile_px=32) as polygons:
            for suffix in ("fgb", "geojson", "parquet"):
                out = write_polygons(polygons, tmp_path / f"{rows}.{suffix}", overwrite=False)
                outs.append(out.path)
    assert outs[1].read_bytes() == outs[4].read_bytes()
    assert pq.ParquetFile(outs[5]).num_row_groups > 10
    assert _by_id(_read(outs[0])) == _by_id(_read(outs[3]))
    assert _by_id(_read(outs[2])) == _by_id(_read(outs[5]))


def test_existing_files_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(30))
    out = tmp_path / "out.gpkg"
    out.write_text("precious")
    with polygonize(path, scratch=tmp_path) as polygons:
        with pytest.raises(OutputError, match="OU-030"):
            write_polygons(polygons, out, overwrite=False)
        assert out.read_text() == "precious"
        write_polygons(polygons, out, overwrite=True)
        assert len(_read(out)) == len(polygons)
        (tmp_path / "folder.fgb").mkdir()
        with pytest.raises(OutputError, match="OU-030"):
            write_polygons(polygons, tmp_path / "folder.fgb", overwrite=True)
        (tmp_path / "file").touch()
        with pytest.raises(OutputError):
            write_polygons(polygons, tmp_path / "file" / "out.fgb", overwrite=True)


@pytest.mark.parametrize("name", ["out", "out.kml", "out.gpkg.zip"])
def test_unknown_suffixes_are_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(10))
    with polygonize(path, scratch=tmp_path) as polygons, pytest.raises(UsageError, match=r"CF-030.*ends in.*\.parquet"):
        write_polygons(polygons, tmp_path / name, overwrite=False)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "parquet"])
def test_a_file_that_reads_back_short_is_not_kept(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(30))
    write, count = write_module._writer_for(Path(f"x.{suffix}"))
    monkeypatch.setattr(write_module, "_writer_for", lambda _: (write, lambda part: count(part) - 1))
    with polygonize(path, scratch=tmp_path / "s") as polygons, pytest.raises(ResourceError, match="RS-002"):
        write_polygons(polygons, tmp_path / f"out.{suffix}", overwrite=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tif", "s"]


DISK_FULL = """
import resource, sys
from pathlib import Path
from pipeline.errors import ResourceError
from pipeline.vector import polygonize, write_polygons
mask, out = Path(sys.argv[1]), Path(sys.argv[2])
limit = int(sys.argv[3])
try:
    if out.name == "spool":
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with polygonize(mask, scratch=out.parent / "scratch") as polygons:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        write_polygons(polygons, out, overwrite=True)
except ResourceError as error:
    print(error.code, *sorted(p.name for p in out.parent.rglob("*")))
"""


@pytest.mark.parametrize("name", ["out.geojson", "out.gpkg", "out.fgb", "out.parquet", "spool"])
def test_b3_a_full_disk_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    mask = write_mask(tmp_path / "m.tif", blobs(300, sigma=1.0))
    out = tmp_path / "folder" / name
    out.parent.mkdir()
    out.write_text("older result")
    run = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(mask), str(out), "60000"], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["RS-002", *sorted([name, "scratch"])], run.stderr
    assert out.read_text() == "older result"
