"""Laws of smoothing: the coverage stays one, no tiling shows, and an eighth of a pixel at most moves at a corner."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import example, given
from hypothesis import strategies as st

import pipeline as sm
from pipeline.vector import Tolerance, polygonize, spool, to_geodataframe, write_polygons
from tests.properties.test_vector_law import CHECKERBOARD, LATTICE, NODATA, SIDES, masks
from tests.scenes import NORTH_UP, write_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.uint8]


def _vectorized(mask: Mask, tile_px: int = 512, **options: object) -> geopandas.GeoDataFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = write_scene(Path(folder) / "m.tif", mask[None], nodata=NODATA)
        with polygonize(path, scratch=Path(folder), tile_px=tile_px, **options) as polygons:  # type: ignore[arg-type]
            return to_geodataframe(polygons)


@given(masks(), SIDES, st.booleans())
@example(CHECKERBOARD, 5, False)
@example(LATTICE, 4, False)
def test_a_smoothed_coverage_is_one_for_any_tiling(mask: Mask, tile_px: int, simplified: bool) -> None:  # noqa: FBT001
    options = {"simplify": Tolerance(1.0, "px")} if simplified else {}
    before, after = _vectorized(mask), _vectorized(mask, tile_px, smooth=True, **options)
    assert after.equals(_vectorized(mask, smooth=True, **options))
    assert after["id"].tolist() == before["id"].tolist()
    assert after["area_px"].tolist() == before["area_px"].tolist()
    if not len(before):
        return
    shapes = after.geometry.to_numpy()
    assert shapely.is_valid(shapes).all()
    assert (shapely.area(shapes) > 0).all()
    assert shapely.coverage_is_valid(shapes)
    if not simplified:
        corners = len(np.unique(shapely.get_coordinates(before.geometry.to_numpy()), axis=0))
        moved = shapely.symmetric_difference(before.geometry.union_all(), after.geometry.union_all())
        assert moved.area <= 100.0 / 8 * corners
        assert shapely.hausdorff_distance(before.geometry.boundary, after.geometry.boundary).max() <= 5.01


def test_a_staircase_becomes_a_line_and_the_rim_stays() -> None:
    mask = (np.indices((20, 20)).sum(axis=0) < 15).astype(np.uint8)
    frame = _vectorized(mask, smooth=True)
    assert frame.geometry.union_all().equals(shapely.box(*_extent(20)))
    lower = frame[frame["class_id"] == 1].geometry.iloc[0]
    assert len(lower.exterior.coords) == 6  # the corner, two along the rim, and two where the line begins at it
    assert lower.area == pytest.approx(100.0 * (mask.sum()), rel=0.02)


def _extent(side: int) -> tuple[float, float, float, float]:
    return NORTH_UP.c, NORTH_UP.f - 10.0 * side, NORTH_UP.c + 10.0 * side, NORTH_UP.f


def test_a_single_pixel_becomes_a_diamond_for_both_sides() -> None:
    mask = np.zeros((5, 5), np.uint8)
    mask[2, 2] = 1
    frame = _vectorized(mask, smooth=True)
    inner, outer = (frame[frame["class_id"] == value].geometry.iloc[0] for value in (1, 0))
    assert inner.area == pytest.approx(50.0)
    assert shapely.Polygon(outer.interiors[0]).equals(inner)


def test_many_corners_are_looked_at_band_after_band(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (60, 70), dtype=np.uint8)
    whole = _vectorized(mask, smooth=True)
    monkeypatch.setattr(spool, "_CORNERS_AT_ONCE", 300)
    monkeypatch.setattr(spool, "_ROWS_AT_ONCE", 40)
    assert _vectorized(mask, smooth=True).equals(whole)


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "parquet"])
def test_smoothed_polygons_in_each_format(tmp_path: Path, suffix: str) -> None:
    mask = np.kron(np.random.default_rng(0).integers(0, 3, (20, 20), dtype=np.uint8), np.ones((2, 2), np.uint8))
    path = write_scene(tmp_path / "m.tif", mask[None], nodata=NODATA)
    frame = sm.vectorize(path, smooth=True, connectivity=8)
    with polygonize(path, scratch=tmp_path, smooth=True, connectivity=8) as polygons:
        write_polygons(polygons, tmp_path / f"p.{suffix}", overwrite=False)
    out = tmp_path / f"p.{suffix}"
    read = geopandas.read_parquet(out) if suffix == "parquet" else geopandas.read_file(out)
    assert sorted(read["id"]) == sorted(frame["id"])
    assert read.to_crs(frame.crs).geometry.area.sum() == pytest.approx(100.0 * mask.size, rel=1e-4)
