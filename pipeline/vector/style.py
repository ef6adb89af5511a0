"""How QGIS draws polygons: names and colours of the classes, kept inside a GeoPackage."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pyarrow as pa
import pyogrio

from pipeline.xmltext import qgis_bytes, qgis_root, xml_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

STYLE_TABLE = "layer_styles"
"""Table in which QGIS keeps and looks for styles."""
_FILL_ALPHA = 110
# https://github.com/qgis/QGIS/blob/master/src/core/providers/ogr/qgsogrprovidermetadata.cpp, saveStyle
_COLUMNS = pa.schema(
    {
        "f_table_catalog": pa.string(),
        "f_table_schema": pa.string(),
        "f_table_name": pa.string(),
        "f_geometry_column": pa.string(),
        "styleName": pa.string(),
        "styleQML": pa.string(),
        "styleSLD": pa.string(),
        "useAsDefault": pa.bool_(),
        "description": pa.string(),
        "owner": pa.string(),
        "ui": pa.string(),
        "update_time": pa.timestamp("ms", tz="UTC"),
    }
)


def style_of(colors: Mapping[int, tuple[int, int, int]], name_of: Callable[[int], str]) -> str:
    """A QGIS layer style (QML): a translucent fill for each `class_id`.

    Args:
        colors: Class value -> red, green, blue.
        name_of: Gives the name of a class value; may hold anything.
    """
    root = qgis_root()
    renderer = ET.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class_id")
    categories, symbols = (ET.SubElement(renderer, tag) for tag in ("categories", "symbols"))
    for index, (value, color) in enumerate(sorted(colors.items())):
        label = xml_text(name_of(value))
        ET.SubElement(categories, "category", value=str(value), symbol=str(index), label=label, render="true")
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=str(index), alpha="1")
        _fill(ET.SubElement(symbol, "layer", {"class": "SimpleFill"}), ",".join(map(str, color)))
    return qgis_bytes(root).decode()


def _fill(layer: ET.Element, rgb: str) -> None:
    """All versions of QGIS 3 read `prop`; those since 3.26 write `Option` instead."""
    for key, value in (
        ("color", f"{rgb},{_FILL_ALPHA}"),
        ("style", "solid"),
        ("outline_color", f"{rgb},255"),
        ("outline_style", "solid"),
        ("outline_width", "0.26"),
        ("outline_width_unit", "MM"),
    ):
        ET.SubElement(layer, "prop", k=key, v=value)


def add_style(path: Path, qml: str) -> None:
    """Put a style into a GeoPackage whose layer has the file's name, as the one that QGIS applies by itself.

    The table is registered as one without geometry, as QGIS does it: it finds no table that GDAL does not list.
    """
    row = ("", "", path.stem, "geom", "classes", qml, "", True, "Classes of the mask", "", "")
    columns = [[value] for value in (*row, datetime.fromtimestamp(0, UTC))]  # no time: equal polygons, equal bytes
    table = pa.table(columns, schema=_COLUMNS)
    pyogrio.write_arrow(table, path, layer=STYLE_TABLE, driver="GPKG", append=True, layer_options={"FID": "id"})
