"""Several masks as one: what is read, what is joined, what is refused."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning
from shapely.geometry import box

from pipeline.errors import InputError, UsageError
from pipeline.grid import GeoBox, Window
from pipeline.vector import polygonize, to_geodataframe
from pipeline.vector.mosaic import MaskSource, mosaic
from pipeline.vector.pieces import Cells
from tests.unit.vector.masks import GRIDS, NODATA, UTM, write_mask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import geopandas
    from numpy.typing import NDArray


class Recorded:
    """A mask in memory that notes which windows are read of it."""

    def __init__(self, row: int, col: int, values: NDArray[Any], *, nodata: int | None = NODATA) -> None:
        self.read: list[Window] = []
        self.values, self.nodata = values, nodata
        height, width = values.shape
        self.source = MaskSource(
            scene=None,
            name=f"{row}-{col}.tif",
            geobox=GeoBox(
                shape=(height, width),
                transform=UTM[1] @ Affine.translation(col, row),
                crs_wkt=rasterio.crs.CRS.from_string(UTM[0]).to_wkt(),
            ),
            dtype=values.dtype,
            bands=(self._cells,),
        )

    def _cells(self, window: Window) -> Cells:
        assert window.row_off >= 0 <= window.col_off
        self.read.append(window)
        block = self.values[window.row_off : window.row_stop, window.col_off : window.col_stop]
        assert block.shape == window.shape
        return Cells(block, None if self.nodata is None else block != self.nodata)


def _window(row: int, col: int, height: int, width: int) -> Window:
    return Window(row_off=row, col_off=col, height=height, width=width)


def _at(rows: float, cols: float, transform: Affine = UTM[1]) -> Affine:
    return transform @ Affine.translation(cols, rows)


def _traced(paths: Sequence[Path], scratch: Path, **options: Any) -> geopandas.GeoDataFrame:
    with polygonize(paths, scratch=scratch, **options) as polygons:
        return to_geodataframe(polygons)


def test_only_what_adds_a_pixel_is_read() -> None:
    over, under = Recorded(0, 0, np.full((8, 8), 1, np.uint8)), Recorded(4, 4, np.full((8, 8), 2, np.uint8))
    far = Recorded(900_000, 0, np.full((8, 8), 3, np.uint8))
    whole = mosaic([over.source, under.source, far.source])
    assert whole.geobox.shape == (900_008, 12)
    (read,) = whole.bands
    values, wanted, _ = read(_window(2, 2, 4, 4))  # hidden below the first
    assert (values == 1).all()
    assert wanted is not None
    assert wanted.all()
    assert (over.read, under.read, far.read) == ([_window(2, 2, 4, 4)], [], [])
    values, wanted, _ = read(_window(500_000, 0, 4, 12))  # of no mask
    assert wanted is not None
    assert not wanted.any()
    values, wanted, _ = read(_window(6, 6, 6, 6))
    assert wanted is not None
    assert (np.where(wanted, values, 0) == [[1] * 2 + [2] * 4] * 2 + [[2] * 6] * 4).all()
    assert (under.read, far.read) == ([_window(2, 2, 6, 6)], [])


def test_one_mask_is_left_alone() -> None:
    one = Recorded(3, 3, np.zeros((2, 2), np.uint8)).source
    assert mosaic([one]) is one


def test_types_and_nodata_may_differ() -> None:
    one = Recorded(0, 0, np.array([[0, 5, 5]], np.uint8), nodata=0)
    two = Recorded(0, 0, np.array([[40_000, 7, 7, 65_535]], np.uint16), nodata=65_535)
    three = Recorded(0, 0, np.array([[1, 1, 1, 0]], np.uint8), nodata=None)  # 0 is a class here
    values, wanted, _ = mosaic([one.source, two.source, three.source]).bands[0](_window(0, 0, 1, 4))
    assert values.tolist() == [[40_000, 5, 5, 0]]
    assert wanted is not None
    assert wanted.all()
    assert values.dtype == np.uint16


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("tile_px", [3, 1024])
def test_an_object_that_crosses_is_one_polygon(tmp_path: Path, grid: str, tile_px: int) -> None:
    crs, transform = GRIDS[grid]
    mask = np.full((5, 8), NODATA, np.uint8)
    mask[1:4, 1:7] = 1
    whole = write_mask(tmp_path / "w.tif", mask, crs=crs, transform=transform)
    right = write_mask(tmp_path / "r.tif", mask[:, 3:], crs=crs, transform=_at(0, 3, transform))
    left = write_mask(tmp_path / "l.tif", mask[:, :5], crs=crs, transform=transform)
    frame, expected = _traced([right, left], tmp_path, tile_px=tile_px), _traced([whole], tmp_path)
    assert len(frame) == 1
    assert frame["id"].tolist() == expected["id"].tolist()
    assert frame["area_m2"].tolist() == pytest.approx(expected["area_m2"].tolist(), rel=1e-6)
    assert frame.geometry.iloc[0].equals_exact(expected.geometry.iloc[0], 1e-3 * abs(transform.a))


def test_three_masks_far_apart(tmp_path: Path) -> None:
    places = ((0, 0), (3000, 9000), (7000, 2000))
    paths = [
        write_mask(tmp_path / f"{row}.tif", np.full((2, 3), value, np.uint8), transform=_at(row, col))
        for value, (row, col) in enumerate(places)
    ]
    frame = _traced(paths[::-1], tmp_path)
    assert frame["class_id"].tolist() == [0, 1, 2]
    for (row, col), shape in zip(places, frame.geometry, strict=True):
        x, y = UTM[1] @ (col, row)
        assert shape.equals(box(x, y - 20, x + 30, y))


def test_a_class_that_is_left_out_still_hides_what_lies_below(tmp_path: Path) -> None:
    over = write_mask(tmp_path / "o.tif", np.array([[0, 0, NODATA]], np.uint8))
    under = write_mask(tmp_path / "u.tif", np.array([[1, 1, 1]], np.uint8))
    assert _traced([over, under], tmp_path, include=frozenset({1}))["area_px"].tolist() == [1]
    assert _traced([under, over], tmp_path, include=frozenset({1}))["area_px"].tolist() == [3]


def test_a_mask_band_makes_room(tmp_path: Path) -> None:
    over = write_mask(tmp_path / "o.tif", np.ones((4, 4), np.uint8), nodata=None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(over, "r+") as file:
        file.write_mask(np.repeat(np.array([[0], [255], [255], [255]], np.uint8), 4, axis=1))
    under = write_mask(tmp_path / "u.tif", np.full((4, 4), 2, np.uint8))
    assert dict(zip(*_traced([over, under], tmp_path)[["class_id", "area_px"]].to_numpy().T, strict=True)) == {
        1: 12, 2: 4,
    }  # fmt: skip


def _bands(path: Path, bands: NDArray[np.uint8], transform: Affine = UTM[1]) -> Path:
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype="uint8", crs=UTM[0],
        transform=transform, nodata=NODATA,
    ) as file:  # fmt: skip
        file.write(bands)
    return path


def test_bands_are_laid_on_their_like(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    over, under = rng.integers(0, 2, (2, 3, 20, 20), dtype=np.uint8)
    over[:, :5] = NODATA
    merged = np.where(over == NODATA, under, over)
    pair = [_bands(tmp_path / "o.tif", over), _bands(tmp_path / "u.tif", under)]
    whole = [_bands(tmp_path / "w.tif", merged)]
    for include in (None, frozenset({2})):
        options: dict[str, Any] = {"bands_are_classes": True, "include": include}
        frame = _traced(pair, tmp_path, tile_px=7, **options)
        expected = _traced(whole, tmp_path, **options)
        assert frame.drop(columns="scene").equals(expected.drop(columns="scene"))
        assert set(frame["class_id"]) == (include or {0, 1, 2})


SMALL = np.zeros((30, 40), np.uint8)
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "crs": ({"crs": "EPSG:32634"}, r"IN-033.*EPSG:32634.*EPSG:32633.*same CRS"),
    "no-crs": ({"crs": None}, r"IN-033.*no CRS.*EPSG:32633"),
    "size": ({"transform": UTM[1] @ Affine.scale(2)}, r"IN-033.*\(20, 0\) per column.*\(10, 0\).*same pixel size"),
    "a-little-larger": ({"transform": UTM[1] @ Affine.scale(1.0001)}, r"IN-033.*\(10\.001, 0\).*same pixel size"),
    "height": ({"transform": UTM[1] @ Affine.scale(1, 1.5)}, r"IN-033.*\(0, -15\) per row.*same pixel size"),
    "turned": ({"transform": UTM[1] @ Affine.rotation(90)}, r"IN-033.*orientation"),
    "south-up": ({"transform": GRIDS["south-up"][1]}, r"IN-033.*\(0, 10\) per row.*orientation"),
    "half-a-column": ({"transform": _at(0, 7.5)}, r"IN-033.*7\.500 columns and 0\.000 rows.*whole numbers"),
    "part-of-a-row": ({"transform": _at(-3.002, 7)}, r"IN-033.*7\.000 columns and -3\.002 rows"),
    "signed": ({"dtype": np.int8, "nodata": -1}, r"IN-034.*1 x int8.*1 x uint8.*all unsigned"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    options, message = OTHERS[case]
    first = write_mask(tmp_path / "first.tif", SMALL)
    values = SMALL.astype(options.get("dtype", np.uint8))
    other = write_mask(tmp_path / "other.tif", values, **{k: v for k, v in options.items() if k != "dtype"})
    with pytest.raises(InputError, match=message) as caught:
        polygonize([first, first, other], scratch=tmp_path / "s")
    assert caught.value.where == str(other)
    assert not (tmp_path / "s").exists()


def test_masks_that_leave_too_much_empty_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = [Recorded(0, 0, SMALL).source, Recorded(100, 50, SMALL).source]  # in 130 x 90 pixels
    monkeypatch.setattr("pipeline.vector.mosaic._MOST_EMPTY_PX", 130 * 90 - 2 * SMALL.size)
    assert mosaic(pair).geobox.shape == (130, 90)
    monkeypatch.setattr("pipeline.vector.mosaic._MOST_EMPTY_PX", 130 * 90 - 2 * SMALL.size - 1)
    with pytest.raises(InputError, match=r"IN-035.*130 x 90 pixels.*9,300 empty.*at most 9,299"):
        mosaic(pair)


def test_other_numbers_of_bands_are_refused(tmp_path: Path) -> None:
    two, three = (_bands(tmp_path / f"{n}.tif", np.zeros((n, 4, 4), np.uint8)) for n in (2, 3))
    with pytest.raises(InputError, match=r"IN-034.*3 x uint8.*2 x uint8.*as many bands"):
        polygonize([two, three], scratch=tmp_path, bands_are_classes=True)


@pytest.mark.parametrize("order", [1, -1])
def test_a_mask_without_any_georeference_lies_nowhere(tmp_path: Path, order: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        plain = write_mask(tmp_path / "plain.tif", SMALL, crs=None, transform=Affine.identity())
    placed = write_mask(tmp_path / "placed.tif", SMALL, crs=None)
    with pytest.raises(InputError, match=r"IN-033.*plain\.tif has no georeference"):
        polygonize([placed, plain][::order], scratch=tmp_path)
    assert len(_traced([placed, placed], tmp_path)) == 1  # local coordinates will do


def test_a_transform_that_places_nothing_is_refused() -> None:
    good = Recorded(0, 0, SMALL).source
    flat = MaskSource(
        scene=None,
        name="flat.tif",
        geobox=GeoBox(shape=(30, 40), transform=Affine(0, 0, 5, 0, 0, 5), crs_wkt=good.geobox.crs_wkt),
        dtype=good.dtype,
        bands=good.bands,
    )
    for pair in ([good, flat], [flat, good]):
        with pytest.raises(InputError, match=r"IN-016.*flat\.tif"):
            mosaic(pair)


@pytest.mark.parametrize("off", [1e-4, -9e-4])
def test_rounding_of_the_georeference_is_forgiven(tmp_path: Path, off: float) -> None:
    left = write_mask(tmp_path / "l.tif", SMALL)
    right = write_mask(tmp_path / "r.tif", SMALL, transform=_at(off, 40 + off))
    frame = _traced([left, right], tmp_path)
    assert frame["area_px"].tolist() == [2400]


def test_the_same_crs_in_other_words(tmp_path: Path) -> None:
    first = write_mask(tmp_path / "a.tif", SMALL, crs="EPSG:4326", transform=GRIDS["geographic"][1])
    other = write_mask(tmp_path / "b.tif", SMALL, crs="OGC:CRS84", transform=GRIDS["geographic"][1])
    assert len(_traced([first, other], tmp_path)) == 1


def test_each_mask_is_checked_by_itself(tmp_path: Path) -> None:
    first = write_mask(tmp_path / "first.tif", SMALL)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "nowhere.tif"))):
        polygonize([first, tmp_path / "nowhere.tif"], scratch=tmp_path)
    floats = write_mask(tmp_path / "floats.tif", SMALL.astype(np.float32))
    with pytest.raises(InputError, match=r"IN-030.*floats\.tif"):
        polygonize([first, floats], scratch=tmp_path)


def test_square_metres_need_a_crs_here_too(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.tif", SMALL, crs=None)
    with pytest.raises(UsageError, match=r"CF-031.*m\.tif"):
        polygonize([path, path], scratch=tmp_path, min_area_m2=1.0)
