"""From a mask file to a set of polygons."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from pyproj import Geod
from rasterio.errors import NotGeoreferencedWarning

from pipeline.errors import InputError, ResourceError, UsageError
from pipeline.vector import PolygonSet, Tolerance, polygonize, spool, to_geodataframe
from pipeline.vector.join import iter_regions
from pipeline.vector.pieces import Cells
from tests.unit.vector.masks import GRIDS, NODATA, blobs, write_mask

if TYPE_CHECKING:
    from pathlib import Path


def _content(polygons: PolygonSet) -> list[tuple[Any, ...]]:
    return [
        (identity, value, pixels, units, shape.wkb)
        for b in polygons.iter_batches(max_rows=7)
        for identity, value, pixels, units, shape in zip(
            b.ids, b.class_ids.tolist(), b.area_px.tolist(), b.area_units.tolist(), b.polygons, strict=True
        )
    ]


@pytest.fixture
def mask_path(tmp_path: Path) -> Path:
    return write_mask(tmp_path / "mask.tif", blobs(150), tiled=True, blockxsize=64, blockysize=64)


@pytest.mark.parametrize("tile_px", [17, 64, 149, 1024])
def test_the_set_knows_no_tiles(mask_path: Path, tmp_path: Path, tile_px: int) -> None:
    with (
        polygonize(mask_path, scratch=tmp_path) as one,
        polygonize(mask_path, scratch=tmp_path, tile_px=tile_px) as two,
    ):
        assert len(one) > 50
        assert _content(one) == _content(two)
        assert one.area_m2_by_class == two.area_m2_by_class
        assert one.pixels_by_class == two.pixels_by_class


def test_counts_areas_and_names(mask_path: Path, tmp_path: Path) -> None:
    mask = blobs(150)
    with polygonize(mask_path, scratch=tmp_path, names={0: "water", 1: "wood"}) as polygons:
        frame = to_geodataframe(polygons)
        values, counts = np.unique(mask[mask != NODATA], return_counts=True)
        assert polygons.pixels_by_class == dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert polygons.num_polygons == len(polygons) == len(frame)
        assert list(frame.columns) == [
            "id",
            "class_id",
            "class_name",
            "area_m2",
            "area_px",
            "perimeter_m",
            "touches_border",
            "touches_nodata",
            "scene",
            "geometry",
        ]
        assert frame["id"].is_unique
        assert frame["id"].str.fullmatch("[0-9a-f]{16}").all()
        assert set(zip(frame["class_id"], frame["class_name"], strict=True)) == {
            (0, "water"), (1, "wood"), (2, "class_2"), (3, "class_3"), (4, "class_4"),
        }  # fmt: skip
        assert frame.crs == "EPSG:32633"
        np.testing.assert_allclose(frame.area, frame["area_px"] * 100.0)
        geod = Geod(ellps="WGS84")
        geodesic = [abs(geod.geometry_area_perimeter(g)[0]) for g in frame.to_crs("EPSG:4326").geometry]
        np.testing.assert_allclose(frame["area_m2"], geodesic, rtol=1e-3)
        by_class = polygons.area_m2_by_class
        assert by_class is not None
        assert sum(by_class.values()) == pytest.approx(frame["area_m2"].sum())


def test_first_pixels_give_the_order(mask_path: Path, tmp_path: Path) -> None:
    with polygonize(mask_path, scratch=tmp_path, tile_px=40) as polygons:
        corners = [min((y, x) for x, y in p.exterior.coords) for b in polygons.iter_batches() for p in b.polygons]
        assert corners == sorted(corners)


def test_ids_follow_class_and_outline_only(tmp_path: Path) -> None:
    mask = np.full((6, 6), NODATA, np.uint8)
    mask[1:3, 1:4] = 1
    one = write_mask(tmp_path / "one.tif", mask)
    mask[5, 5] = 1
    two = write_mask(tmp_path / "two.tif", mask, crs="EPSG:4326", transform=GRIDS["geographic"][1])
    mask[mask == 1] = 2
    three = write_mask(tmp_path / "three.tif", mask)
    ids = []
    for path in (one, two, three):
        with polygonize(path, scratch=tmp_path) as polygons:
            ids.append(next(polygons.iter_batches()).ids)
    assert ids[0][0] == ids[1][0] != ids[2][0]
    assert ids[1][0] != ids[1][1]


def test_include_keeps_the_named_classes(mask_path: Path, tmp_path: Path) -> None:
    with polygonize(mask_path, scratch=tmp_path) as everything:
        expected = [row for row in _content(everything) if row[1] in {1, 4}]
    with polygonize(mask_path, scratch=tmp_path, include=frozenset({1, 4, 9}), tile_px=33) as some:
        assert _content(some) == expected


@pytest.mark.parametrize("tile_px", [3, 4, 100])
def test_minimum_area_is_that_of_the_whole_region(tmp_path: Path, tile_px: int) -> None:
    mask = np.full((10, 20), NODATA, np.uint8)
    mask[1, 1:17] = 1  # 16 pixels, cut by every tiling
    mask[3:6, 0:5] = 2  # 15 pixels
    path = write_mask(tmp_path / "m.tif", mask)
    with polygonize(path, scratch=tmp_path, min_area_m2=1550, tile_px=tile_px) as polygons:
        assert polygons.pixels_by_class == {1: 16}
    with polygonize(path, scratch=tmp_path, min_area_m2=1e9, tile_px=tile_px) as polygons:
        assert len(polygons) == 0


def test_without_crs_there_are_pixels_but_no_square_metres(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(20), crs=None)
    with polygonize(path, scratch=tmp_path) as polygons:
        assert polygons.area_m2_by_class is None
        frame = to_geodataframe(polygons)
        assert frame["area_m2"].isna().all()
        assert frame["area_px"].sum() == (blobs(20) != NODATA).sum()
        assert frame.crs is None
    with pytest.raises(UsageError, match="CF-031"):
        polygonize(path, scratch=tmp_path / "s", min_area_m2=1.0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64"])
def test_every_integer_type_is_read(tmp_path: Path, dtype: str) -> None:
    mask = np.kron(np.eye(3, dtype=dtype), np.ones((2, 2), dtype))
    with polygonize(write_mask(tmp_path / "m.tif", mask, nodata=None), scratch=tmp_path) as polygons:
        assert polygons.pixels_by_class == {0: 24, 1: 12}


def test_wide_class_numbers_survive(tmp_path: Path) -> None:
    mask = np.array([[0, 40_000, 65_534, 65_535]], np.uint16)
    with polygonize(write_mask(tmp_path / "m.tif", mask, nodata=65_535), scratch=tmp_path) as polygons:
        assert polygons.pixels_by_class == {0: 1, 40_000: 1, 65_534: 1}
    huge = np.array([[0, 3_000_000_000]], np.uint32)
    with pytest.raises(InputError, match="IN-032"):
        polygonize(write_mask(tmp_path / "h.tif", huge, nodata=None), scratch=tmp_path)


def test_mask_band_counts_as_nodata(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", np.ones((4, 4), np.uint8), nodata=None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        valid = np.full((4, 4), 255, np.uint8)
        valid[0] = 0
        file.write_mask(valid)
    with polygonize(path, scratch=tmp_path) as polygons:
        assert polygons.pixels_by_class == {1: 12}


def test_e14_bool_blocks_are_cast() -> None:
    cells = np.eye(2, dtype=bool)
    regions = iter_regions(lambda w: Cells(cells[w.slices_in(w)], None), (2, 2), tile_hw=(2, 2))
    assert sorted(value for found in regions for value in found.values.tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_probabilities_are_no_classes(tmp_path: Path, dtype: str) -> None:
    path = write_mask(tmp_path / "m.tif", np.zeros((3, 3), dtype), nodata=None)
    with pytest.raises(InputError, match=rf"IN-030.*{dtype}"):
        polygonize(path, scratch=tmp_path)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"IN-031.*nowhere\.tif"):
        polygonize(tmp_path / "nowhere.tif", scratch=tmp_path)
    rasterio.shutil.copy(write_mask(tmp_path / "m.tif", blobs(9)), tmp_path / "vrt.tif", driver="VRT")
    with pytest.raises(InputError, match="IN-031"):
        polygonize(tmp_path / "vrt.tif", scratch=tmp_path)
    with rasterio.open(
        tmp_path / "rgb.tif", "w", driver="GTiff", height=2, width=2, count=3, dtype="uint8", crs="EPSG:32633",
        transform=GRIDS["utm"][1],
    ) as file:  # fmt: skip
        file.write(np.zeros((3, 2, 2), np.uint8))
    with pytest.raises(InputError, match=r"IN-031.*3 bands"):
        polygonize(tmp_path / "rgb.tif", scratch=tmp_path)


def test_a_truncated_mask_fails_with_its_window_and_leaves_no_spool(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", blobs(256), tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[:-6000])
    scratch = tmp_path / "scratch"
    with pytest.raises(InputError, match=r"IN-031.*rows \d+-\d+, columns"):
        polygonize(path, scratch=scratch, tile_px=64)
    assert list(scratch.iterdir()) == []


def test_the_spool_goes_with_the_set(mask_path: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    with polygonize(mask_path, scratch=scratch):
        assert len(list(scratch.iterdir())) == 1
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("options", [{"tile_px": 0}, {"min_area_m2": -1.0}, {"min_area_m2": float("nan")}])
def test_options_out_of_range(mask_path: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="CF-032"):
        polygonize(mask_path, scratch=tmp_path, **options)


def test_progress_counts_two_steps_for_each_tile(mask_path: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    polygonize(mask_path, scratch=tmp_path, tile_px=60, progress=lambda *done: calls.append(done)).close()
    assert calls == [(i, 18) for i in range(1, 19)]


def test_a_mask_without_any_georeference_is_traced_in_pixels(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        path = write_mask(tmp_path / "m.tif", np.ones((3, 5), np.uint8), crs=None, transform=Affine.identity())
    with polygonize(path, scratch=tmp_path) as polygons:
        assert to_geodataframe(polygons).total_bounds.tolist() == [0, 0, 5, 3]


def test_e6_noise_ends_in_words(mask_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MOST_POLYGONS", 20)
    with pytest.raises(ResourceError, match=r"RS-007.*more than 20 polygons.*--sieve"):
        polygonize(mask_path, scratch=tmp_path / "s", tile_px=40)
    assert list((tmp_path / "s").iterdir()) == []
    with polygonize(mask_path, scratch=tmp_path / "s", min_area_m2=6e4) as polygons:
        assert 0 < len(polygons) <= 20


def test_regions_that_may_go_on_beyond_the_scene_are_marked(tmp_path: Path) -> None:
    mask = np.zeros((9, 12), np.uint8)
    mask[3:5, 4:6], mask[8, 7], mask[0:2, 11], mask[4, 0] = 1, 2, 3, 4
    path = write_mask(tmp_path / "m.tif", mask)
    for options in ({"tile_px": 4}, {"simplify": Tolerance(1, "px")}):
        with polygonize(path, scratch=tmp_path, **options) as polygons:
            frame = to_geodataframe(polygons)
        assert dict(zip(frame["class_id"], frame["touches_border"], strict=True)) == {
            0: True, 1: False, 2: True, 3: True, 4: True,
        }  # fmt: skip
