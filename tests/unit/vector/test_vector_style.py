"""The style in a GeoPackage: what QGIS looks for, and nothing that other readers stumble over."""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pyogrio
import pytest

from pipeline.vector import polygonize, write_polygons
from pipeline.vector.style import add_style
from tests.unit.vector.masks import blobs, write_mask

COLORS = {0: (0, 0, 0), 1: (230, 159, 0), 3: (86, 180, 233)}
COLUMNS = [
    ("id", "INTEGER"), ("f_table_catalog", "TEXT"), ("f_table_schema", "TEXT"), ("f_table_name", "TEXT"),
    ("f_geometry_column", "TEXT"), ("styleName", "TEXT"), ("styleQML", "TEXT"), ("styleSLD", "TEXT"),
    ("useAsDefault", "BOOLEAN"), ("description", "TEXT"), ("owner", "TEXT"), ("ui", "TEXT"),
    ("update_time", "DATETIME"),
]  # fmt: skip


def _write(
    tmp_path: Path, out: Path, *, colors: dict[int, tuple[int, int, int]], crs: str | None = "EPSG:32633"
) -> Path:
    mask = write_mask(tmp_path / "m.tif", blobs(60), crs=crs)
    with polygonize(mask, scratch=tmp_path, names={1: 'Wäld <"&\x07>'}) as polygons:
        polygons.colors = colors
        return write_polygons(polygons, out, overwrite=False).path


def _sql(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as base:
        return base.execute(query).fetchall()


@pytest.mark.parametrize("crs", ["EPSG:32633", None])
def test_qgis_finds_one_default_style_for_the_layer(tmp_path: Path, crs: str | None) -> None:
    path = _write(tmp_path, tmp_path / "my polygons.gpkg", colors=COLORS, crs=crs)
    assert [row[1:3] for row in _sql(path, "PRAGMA table_info(layer_styles)")] == COLUMNS
    # The question that QGIS asks: no schema, the layer, its geometry column.
    found = _sql(
        path,
        "SELECT useAsDefault, update_time, length(styleQML) FROM layer_styles JOIN gpkg_geometry_columns"
        " ON f_table_name = table_name AND f_geometry_column = column_name WHERE f_table_schema = ''",
    )
    assert [row[:2] for row in found] == [(1, "1970-01-01T00:00:00Z")]
    kinds = _sql(path, "SELECT table_name, data_type FROM gpkg_contents ORDER BY data_type")
    assert kinds == [("layer_styles", "attributes"), ("my polygons", "features")]
    assert _sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_each_class_has_its_name_and_a_translucent_fill(tmp_path: Path) -> None:
    path = _write(tmp_path, tmp_path / "p.gpkg", colors=COLORS)
    ((qml,),) = _sql(path, "SELECT styleQML FROM layer_styles")
    assert qml.startswith("<!DOCTYPE qgis ")
    (renderer,) = ET.fromstring(qml)
    assert (renderer.tag, renderer.get("type"), renderer.get("attr")) == (
        "renderer-v2",
        "categorizedSymbol",
        "class_id",
    )
    fills = {}
    for category in renderer.findall("categories/category"):
        properties = renderer.findall(
            f"symbols/symbol[@name='{category.get('symbol')}']/layer[@class='SimpleFill']/prop"
        )
        color = {prop.get("k"): prop.get("v") for prop in properties}["color"] or ""
        fills[category.get("value"), category.get("label")] = tuple(map(int, color.split(",")))
    labels = [("0", "class_0"), ("1", 'Wäld <"&\ufffd>'), ("3", "class_3")]
    assert list(fills) == labels
    for (label, (*color, alpha)), expected in zip(fills.items(), COLORS.values(), strict=True):
        assert tuple(color) == expected, label
        assert 0 < alpha < 255


def test_other_readers_see_one_layer_of_polygons(tmp_path: Path) -> None:
    path = _write(tmp_path, tmp_path / "p.gpkg", colors=COLORS)
    plain = _write(tmp_path, tmp_path / "plain" / "p.gpkg", colors={})
    assert pyogrio.list_layers(path).tolist() == [["p", "Polygon"], ["layer_styles", None]]
    assert pyogrio.list_layers(plain).tolist() == [["p", "Polygon"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = pyogrio.read_info(path, layer="p")
        assert (info["features"], info["fid_column"]) == (pyogrio.read_info(plain)["features"], "fid")
        assert geopandas.read_file(path, layer="p").equals(geopandas.read_file(plain))
        assert len(pyogrio.read_dataframe(path, layer="layer_styles")) == 1


def test_equal_polygons_and_colours_give_equal_bytes(tmp_path: Path) -> None:
    paths = [_write(tmp_path, tmp_path / name / "p.gpkg", colors=COLORS) for name in ("one", "two")]
    paths.append(_write(tmp_path, tmp_path / "three" / "p.gpkg", colors={**COLORS, 3: (1, 2, 3)}))
    one, two, other = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert one == two != other


def test_a_style_is_in_the_file_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    styled: list[Path] = []

    def add(path: Path, qml: str) -> None:
        add_style(path, qml)
        styled.append(path)
        assert not (tmp_path / "p.gpkg").exists()

    monkeypatch.setattr("pipeline.vector.write.add_style", add)
    _write(tmp_path, tmp_path / "p.gpkg", colors=COLORS)
    assert styled
    assert not styled[0].exists()


def test_a_layer_that_is_called_as_the_styles_are_goes_without(tmp_path: Path) -> None:
    path = _write(tmp_path, tmp_path / "layer_styles.gpkg", colors=COLORS)
    assert len(pyogrio.list_layers(path)) == 1
    assert np.isin(geopandas.read_file(path)["class_id"], range(5)).all()
