"""Filled holes: SciPy says which pixels a feature has then; what lies inside is gone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rasterio.features import rasterize
from scipy import ndimage

import pipeline as sm
from pipeline.vector import Tolerance, fill, polygonize, spool, to_geodataframe
from tests.properties.test_vector_law import LATTICE, NODATA, SIDES, _rings, masks
from tests.scenes import NORTH_UP, write_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.uint8]


def _vectorized(mask: Mask, tile_px: int, **options: object) -> geopandas.GeoDataFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = write_scene(Path(folder) / "m.tif", mask[None], nodata=NODATA)
        with polygonize(path, scratch=Path(folder), tile_px=tile_px, **options) as polygons:  # type: ignore[arg-type]
            return to_geodataframe(polygons)


def _filled(inside: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """A region without holes of fewer pixels: rings are simple, so pixels that touch at a corner are holes apart."""
    labels, count = ndimage.label(np.pad(~inside, 1, constant_values=True))
    small = np.bincount(labels.ravel(), minlength=count + 1) < least
    small[[0, labels[0, 0]]] = False
    return inside | small[labels[1:-1, 1:-1]]


def _by_hand(mask: Mask, least: int) -> list[tuple[int, NDArray[np.bool_]]]:
    """(class, pixels) of each region that lies in no filled hole, its own small holes filled."""
    regions = []
    for value in set(np.unique(mask).tolist()) - {NODATA}:
        labels, count = ndimage.label(mask == value)
        regions += [(value, labels == number) for number in range(1, count + 1)]
    filled = [(value, inside, _filled(inside, least)) for value, inside in regions]
    holes = np.logical_or.reduce([full & ~inside for _, inside, full in filled] or [np.zeros(mask.shape, bool)])
    return [(value, full) for value, inside, full in filled if not (inside & holes).any()]


@given(masks(), SIDES, st.integers(1, 12))
@example(_rings(13), 4, 9)
@example(LATTICE, 4, 2)
def test_filled_regions_are_those_of_the_pixels(mask: Mask, tile_px: int, least: int) -> None:
    frame = _vectorized(mask, tile_px, fill_holes_px=least)
    expected = sorted((int(value), full.tobytes()) for value, full in _by_hand(mask, least))
    found = sorted(
        (int(value), rasterize([geometry], mask.shape, transform=NORTH_UP).astype(bool).tobytes())
        for geometry, value in zip(frame.geometry, frame["class_id"], strict=True)
    )
    assert found == expected
    assert np.allclose(frame.geometry.area, 100.0 * frame["area_px"])
    assert frame["id"].is_unique


@given(masks(), st.integers(2, 8), st.integers(1, 12), st.integers(1, 12))
@example(_rings(13), 4, 9, 5)
@example(LATTICE, 4, 2, 1)
def test_what_is_clean_stays_as_it_is(mask: Mask, tile_px: int, holes: int, least: int) -> None:
    """Burned again, cleaned polygons give themselves."""
    options = {"fill_holes_px": holes, "min_area_px": least}
    frame = _vectorized(mask, tile_px, **options)
    shapes = list(zip(frame.geometry, frame["class_id"], strict=True))
    burned = np.full(mask.shape, NODATA, np.uint8)
    if shapes:
        burned = rasterize(shapes, mask.shape, fill=NODATA, transform=NORTH_UP, dtype="uint8")
    again = _vectorized(burned, tile_px, **options)
    columns = ["id", "class_id", "area_px", "geometry"]
    assert again[columns].equals(frame[columns])


def test_a_hole_is_filled_before_the_smallest_area_counts() -> None:
    mask = np.full((9, 9), NODATA, np.uint8)
    mask[2:7, 2:7] = 1
    mask[3:6, 3:6] = NODATA
    mask[4, 4] = 2
    frame = _vectorized(mask, 4, fill_holes_px=10, min_area_px=20)
    assert frame["area_px"].tolist() == [25]
    assert len(_vectorized(mask, 4, fill_holes_m2=899.0, min_area_px=20)) == 0
    assert _vectorized(mask, 4, fill_holes_m2=901.0)["class_id"].tolist() == [1]
    joined = _vectorized(mask, 4, fill_holes_px=10, min_area_px=20, connectivity=8)
    assert joined["area_px"].tolist() == [25]


def test_many_holes_are_looked_into_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).integers(0, 3, (60, 70), dtype=np.uint8)
    whole = _vectorized(mask, 32, fill_holes_px=6)
    monkeypatch.setattr(fill, "_HOLES_AT_ONCE", 3)
    monkeypatch.setattr(spool, "_ROWS_AT_ONCE", 50)
    assert _vectorized(mask, 32, fill_holes_px=6).equals(whole)
    assert len(whole) < len(_vectorized(mask, 32))


def test_filled_and_simplified_is_a_coverage() -> None:
    mask = np.kron(np.random.default_rng(1).integers(0, 3, (20, 20), dtype=np.uint8), np.ones((3, 3), np.uint8))
    frame = _vectorized(mask, 16, fill_holes_px=20, simplify=Tolerance(1.0, "px"))
    assert frame.geometry.is_valid.all()
    assert frame.geometry.area.sum() == pytest.approx(100.0 * mask.size)


def test_probabilities_are_those_of_the_own_pixels(tmp_path: Path) -> None:
    mask = np.full((1, 9, 9), 1, np.uint8)
    mask[0, 4, 4] = NODATA
    path = write_scene(tmp_path / "m.tif", mask, nodata=NODATA)
    data = np.full((2, 9, 9), 200, np.uint8)
    data[:, 4, 4] = 255
    kept = write_scene(tmp_path / "p.tif", data, nodata=255)
    import rasterio

    with rasterio.open(kept, "r+") as file:
        file.scales = (1 / 250,) * 2
    frame = sm.vectorize(path, fill_holes="2 px", probabilities=kept)
    assert frame[["area_px", "p_mean", "p_min"]].values.tolist() == [[81, 0.8, 0.8]]
