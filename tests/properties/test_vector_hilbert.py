"""The curve along which GeoParquet is sorted, and what sorting is for: an area is read without most of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.vector import PolygonSet, polygonize, write_polygons
from pipeline.vector import write as write_module
from pipeline.vector.hilbert import hilbert_codes, hilbert_order
from tests.unit.vector.masks import UTM, write_mask

if TYPE_CHECKING:
    from pathlib import Path


def _curve(levels: int) -> list[tuple[int, int]]:
    """Its cells in order, as Hilbert drew it: four curves of half the side, the outer ones turned."""
    if levels == 0:
        return [(0, 0)]
    half, quarter = 1 << (levels - 1), _curve(levels - 1)
    return [
        *((y, x) for x, y in quarter),
        *((x, y + half) for x, y in quarter),
        *((x + half, y + half) for x, y in quarter),
        *((2 * half - 1 - y, half - 1 - x) for x, y in quarter),
    ]


@pytest.mark.parametrize("levels", range(8))
def test_codes_are_those_of_the_curve_as_it_is_defined(levels: int) -> None:
    cells = np.array(_curve(levels))
    np.testing.assert_array_equal(hilbert_codes(*cells.T, levels=levels), np.arange(4**levels))


@pytest.mark.parametrize("levels", [1, 5, 9])
def test_every_cell_is_visited_in_steps_of_one(levels: int) -> None:
    y, x = (a.ravel() for a in np.indices((1 << levels, 1 << levels)))
    codes = hilbert_codes(x, y, levels=levels)
    order = np.argsort(codes)
    np.testing.assert_array_equal(codes[order], np.arange(4**levels))
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()


@given(st.integers(0, 2**40), st.integers(0, 4**16 - 2))
def test_sixteen_levels_come_back_from_their_places(seed: int, code: int) -> None:
    """Two neighbours anywhere on the finest curve: a bisection through the quarters finds where they are."""
    cells = np.array([_cell(c, 16) for c in (code, code + 1)])
    np.testing.assert_array_equal(hilbert_codes(*cells.T), [code, code + 1])
    assert np.abs(np.diff(cells, axis=0)).sum() == 1
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 4**16, 20)
    np.testing.assert_array_equal(hilbert_codes(*np.array([_cell(int(c), 16) for c in few]).T), few)


def _cell(code: int, levels: int) -> tuple[int, int]:
    if levels == 0:
        return 0, 0
    half = 1 << (levels - 1)
    quarter, rest = divmod(code, 4 ** (levels - 1))
    x, y = _cell(rest, levels - 1)
    return [(y, x), (x, y + half), (x + half, y + half), (2 * half - 1 - y, half - 1 - x)][quarter]


def test_scenes_of_any_size_are_ordered() -> None:
    rng = np.random.default_rng(0)
    for height, width, shift in ((1, 1, 0), (3, 70, 0), (65_536, 400, 0), (65_537, 9, 1), (300_000, 900_000, 4)):
        pixels = rng.permutation(np.unique(rng.integers(0, height * width, 3000)))
        ordered = pixels[hilbert_order(pixels, (height, width))]
        assert set(ordered) == set(pixels)
        row, col = np.divmod(ordered, width)
        keys = list(zip(hilbert_codes(col >> shift, row >> shift).tolist(), ordered.tolist(), strict=True))
        assert keys == sorted(keys)
        assert max(row.max(), col.max()) >> shift < 65_536


def _boxes(path: Path) -> Any:
    """Box of each row group from its statistics, shape (group, 4): west, south, east, north."""
    metadata, boxes = pq.read_metadata(path), []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(i) for i in range(group.num_columns))
        found = {column.path_in_schema: column.statistics for column in columns}
        low = [found[f"bbox.{name}"].min for name in ("xmin", "ymin")]
        boxes.append([*low, *(found[f"bbox.{name}"].max for name in ("xmax", "ymax"))])
    return np.array(boxes)


def test_row_groups_lie_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = 600
    noise = np.random.default_rng(0).integers(0, 4, (side, side)).astype(np.uint8)
    mask = write_mask(tmp_path / "m.tif", noise)
    monkeypatch.setattr(write_module, "_GROUP_ROWS", 1024)
    read = PolygonSet.iter_batches
    with polygonize(mask, scratch=tmp_path) as polygons:
        curve = write_polygons(polygons, tmp_path / "curve.parquet", overwrite=False).path
        monkeypatch.setattr(PolygonSet, "iter_batches", lambda self, most, **_: read(self, most))
        plain = write_polygons(polygons, tmp_path / "plain.parquet", overwrite=False).path
        assert len(polygons) > 100_000
    one, other = pq.read_table(curve), pq.read_table(plain)
    assert one["id"] != other["id"]
    assert one.sort_by("id").equals(other.sort_by("id"))
    boxes, strips = _boxes(curve), _boxes(plain)
    areas = [((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])).sum() for b in (boxes, strips)]
    assert areas[0] < 0.7 * areas[1]
    rng = np.random.default_rng(1)
    corners = UTM[1] @ tuple(rng.uniform(0, side - 60, (2, 100)))
    met = [_groups_met(b, corners, size=60 * UTM[1].a) for b in (boxes, strips)]
    assert met[0] < 0.4 * met[1]


def _groups_met(boxes: Any, corners: tuple[Any, ...], *, size: float) -> int:
    """Row groups that readers of square areas, given by their upper left corners, take in altogether."""
    west, north = (np.asarray(a)[:, None] for a in corners)
    beside = (boxes[:, 2] < west) | (boxes[:, 0] > west + size)
    return int((~beside & (boxes[:, 3] >= north - size) & (boxes[:, 1] <= north)).sum())


def test_an_area_is_read_back_whole(tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "m.tif", np.random.default_rng(2).integers(0, 4, (250, 250)).astype(np.uint8))
    with polygonize(mask, scratch=tmp_path) as polygons:
        path = write_polygons(polygons, tmp_path / "p.parquet", overwrite=False).path
    whole = geopandas.read_parquet(path)
    x, y = UTM[1] @ (100.0, 130.0)
    part = geopandas.read_parquet(path, bbox=(x - 95, y - 95, x + 95, y + 95))
    b = whole.bounds
    meets = (b.minx <= x + 95) & (b.maxx >= x - 95) & (b.miny <= y + 95) & (b.maxy >= y - 95)
    assert set(part["id"]) == set(whole["id"][meets])
    assert 0 < len(part) < len(whole) / 20
