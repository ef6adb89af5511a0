"""Files of polygons in a reader of its own make: DuckDB's spatial extension, as its own signed binary from PyPI."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.vector import Tolerance, polygonize, write_polygons
from tests.unit.vector.masks import NODATA, blobs, write_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

duckdb = pytest.importorskip("duckdb")
pytest.importorskip("duckdb_extension_spatial")

SIDE, PIXEL_M2 = 300, 100.0


@pytest.fixture(scope="module")
def base() -> Iterator[Any]:
    """A database in memory with the extension; nothing is fetched."""
    spec = importlib.util.find_spec("duckdb_extension_spatial")
    assert spec is not None
    assert spec.origin is not None
    (binary,) = Path(spec.origin).parent.glob("extensions/*/spatial.duckdb_extension")
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        connection.load_extension(str(binary))
        yield connection


@pytest.mark.parametrize("simplify", [None, Tolerance(1.0, "px")], ids=["traced", "simplified"])
@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "parquet"])
def test_duckdb_reads_every_polygon(base: Any, tmp_path: Path, suffix: str, simplify: Tolerance | None) -> None:
    mask = blobs(SIDE, sigma=3.0)
    source = write_mask(tmp_path / "m.tif", mask)
    with polygonize(source, scratch=tmp_path, simplify=simplify) as polygons:
        path = write_polygons(polygons, tmp_path / f"p.{suffix}", overwrite=False).path
        count, classes = len(polygons), sorted(polygons.pixels_by_class)
    reader, geometry = ("read_parquet", "geometry") if suffix == "parquet" else ("st_read", "geom")
    found = base.execute(
        f"SELECT count(*), bool_and(ST_IsValid({geometry})), sum(ST_Area({geometry})), sum(area_px), "
        f"list(DISTINCT class_id ORDER BY class_id), count(DISTINCT id) FROM {reader}(?)",
        [str(path)],
    ).fetchone()
    pixels = int((mask != NODATA).sum())
    assert found[:2] == (count, True)
    assert found[3:] == (pixels, classes, count)
    if suffix != "geojson":  # which is in degrees
        np.testing.assert_allclose(found[2], PIXEL_M2 * pixels, rtol=1e-9)
