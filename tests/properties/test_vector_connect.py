"""8-connectivity: SciPy's labels with all eight neighbours say which pixels are one feature; every feature is valid."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import example, given
from scipy import ndimage

import pipeline as sm
from pipeline.errors import UsageError
from pipeline.vector import Tolerance, connect, polygonize, spool, to_geodataframe, write_polygons
from tests.properties.test_vector_law import CHECKERBOARD, LATTICE, NODATA, SIDES, masks
from tests.scenes import NORTH_UP, write_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.uint8]

EIGHT = np.ones((3, 3), int)


def _by_labels(mask: Mask) -> set[tuple[int, int, int]]:
    """(first pixel, class, pixels) of each feature."""
    found = set()
    for value in set(np.unique(mask).tolist()) - {NODATA}:
        labels, count = ndimage.label(mask == value, structure=EIGHT)
        for number in range(1, count + 1):
            at = np.flatnonzero(labels == number)
            found.add((int(at[0]), value, len(at)))
    return found


def _vectorized(mask: Mask, tile_px: int, **options: object) -> geopandas.GeoDataFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = write_scene(Path(folder) / "m.tif", mask[None], nodata=NODATA)
        with polygonize(path, scratch=Path(folder), tile_px=tile_px, connectivity=8, **options) as polygons:  # type: ignore[arg-type]
            return to_geodataframe(polygons)


def _first_pixel(geometry: shapely.Geometry, width: int) -> int:
    x, y = np.array(shapely.get_coordinates(geometry)).T
    col, row = (x - NORTH_UP.c) / NORTH_UP.a, (y - NORTH_UP.f) / NORTH_UP.e
    top = np.rint(row).min()
    return int(top * width + np.rint(col[np.rint(row) == top]).min())


@given(masks(), SIDES)
@example(CHECKERBOARD, 5)
@example(LATTICE, 4)
def test_e1_features_are_eight_connected_and_valid(mask: Mask, tile_px: int) -> None:
    frame = _vectorized(mask, tile_px)
    assert frame.geometry.is_valid.all()
    assert set(frame.geometry.geom_type) <= {"MultiPolygon"}
    assert frame["id"].is_unique
    found = [
        (_first_pixel(geometry, mask.shape[1]), int(value), int(pixels))
        for geometry, value, pixels in zip(frame.geometry, frame["class_id"], frame["area_px"], strict=True)
    ]
    assert set(found) == _by_labels(mask)
    assert len(found) == len(set(found))
    assert np.allclose(frame.geometry.area, 100.0 * frame["area_px"])
    assert np.allclose(frame["perimeter_m"], frame.geometry.length, rtol=2e-3, atol=0.1)


def test_many_corners_are_compared_band_after_band(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (60, 70), dtype=np.uint8)
    whole = _vectorized(mask, 32)
    monkeypatch.setattr(spool, "_CORNERS_AT_ONCE", 500)
    monkeypatch.setattr(connect, "_FEATURES_AT_ONCE", 7)
    assert _vectorized(mask, 32).equals(whole)


def test_the_smallest_area_is_that_of_the_whole_feature() -> None:
    mask = np.full((8, 8), NODATA, np.uint8)
    mask[np.arange(5), np.arange(5)] = 1  # five pixels, corner to corner
    mask[7, 7] = 2
    assert _vectorized(mask, 3, min_area_px=5)["area_px"].tolist() == [5]
    assert _vectorized(mask, 3, min_area_m2=450.0)["area_px"].tolist() == [5]
    assert len(_vectorized(mask, 3, min_area_px=6)) == 0


def test_simplified_features_stay_together(tmp_path: Path) -> None:
    mask = np.kron(CHECKERBOARD, np.ones((4, 4), np.uint8))
    frame = _vectorized(mask, 16, simplify=Tolerance(1.0, "px"))
    assert len(frame) == 2
    assert frame.geometry.is_valid.all()
    assert frame.geometry.area.sum() == pytest.approx(100.0 * mask.size)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "parquet"])
def test_each_format_holds_features_of_several_parts(tmp_path: Path, suffix: str) -> None:
    path = write_scene(tmp_path / "m.tif", CHECKERBOARD[None], nodata=NODATA)
    with polygonize(path, scratch=tmp_path, connectivity=8) as polygons:
        written = write_polygons(polygons, tmp_path / f"p.{suffix}", overwrite=False)
    out = tmp_path / f"p.{suffix}"
    frame = geopandas.read_parquet(out) if suffix == "parquet" else geopandas.read_file(out)
    assert written.num_polygons == len(frame) == 2
    assert [len(g.geoms) for g in frame.geometry] == [128, 128]
    assert sm.vectorize(path, connectivity=8)["id"].tolist() == frame["id"].tolist()
    assert len(sm.vectorize(path)) == 256


def test_a_sieve_needs_sides(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "m.tif", CHECKERBOARD[None], nodata=NODATA)
    with pytest.raises(UsageError, match="connectivity 4"):
        sm.vectorize(path, connectivity=8, sieve=True, min_area="3 px")
