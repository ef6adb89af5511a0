"""Class names and colours beside a mask: GDAL's `.aux.xml`, QGIS's `.qml`, and reading them back.

Names come from models and may hold anything; everything written here is escaped.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import rasterio

from pipeline.legend import ClassInfo, Legend, default_legend
from pipeline.store.cog import LEGEND_TAG, MULTILABEL_TAG
from pipeline.store.files import atomic_write_bytes
from pipeline.xmltext import qgis_bytes, qgis_root, xml_bytes, xml_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAX_XML_BYTES = 16 << 20
_ABSENT = (225, 225, 225)
# GDAL's field types and usages in a raster attribute table: 0 integer, 2 string; 5 value, 2 name, 6-8 colours.
_ATTRIBUTES = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))


def write_class_names(mask_path: Path, legend: Legend, *, tags: Mapping[str, str] | None = None) -> Path:
    """Write `<mask>.aux.xml`: category names (GDAL, QGIS) and an attribute table (ArcGIS, QGIS 3.18 and later).

    The colour table itself is inside the mask. rasterio can write neither names nor attribute tables.

    Args:
        mask_path: The mask.
        legend: Its classes.
        tags: What GDAL is to show as the mask's own tags, without being part of its bytes.

    Raises:
        ResourceError: RS-001, no space.
    """
    root = ET.Element("PAMDataset")
    if tags:
        metadata = ET.SubElement(root, "Metadata")
        for key, value in tags.items():
            ET.SubElement(metadata, "MDI", key=key).text = value
    for number, values in enumerate(_band_values(legend), start=1):
        _name_values(ET.SubElement(root, "PAMRasterBand", band=str(number)), values)
    path = mask_path.with_name(f"{mask_path.name}.aux.xml")
    atomic_write_bytes(path, xml_bytes(root))
    return path


def _band_values(legend: Legend) -> list[list[ClassInfo]]:
    """What each band of the mask may hold: all classes, or where they overlap one class and its absence."""
    if not legend.multilabel:
        return [list(legend)]
    return [
        [ClassInfo(value=0, name=f"not {c.name}", color=_ABSENT, background=True), dataclasses.replace(c, value=1)]
        for c in legend
    ]


def _name_values(band: ET.Element, values: list[ClassInfo]) -> None:
    names = ET.SubElement(band, "CategoryNames")
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_ATTRIBUTES):
        field = ET.SubElement(table, "FieldDefn", index=str(index))
        for tag, text in (("Name", name), ("Type", str(kind)), ("Usage", str(usage))):
            ET.SubElement(field, tag).text = text
    for info in values:
        ET.SubElement(names, "Category").text = xml_text(info.name)
        row = ET.SubElement(table, "Row", index=str(info.value))
        for value in (info.value, xml_text(info.name), *info.color):
            ET.SubElement(row, "F").text = str(value)


def write_qgis_style(path: Path, legend: Legend) -> Path:
    """Write a QGIS layer style (`.qml`) for the mask: one labelled colour per class, nothing for nodata.

    QGIS applies it by itself to a raster of the same name beside it. Where classes overlap, it shows the first band:
    another is chosen in the layer's symbology.

    Raises:
        ResourceError: RS-001, no space.
    """
    root = qgis_root()
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    palette = ET.SubElement(renderer, "colorPalette")
    for info in _band_values(legend)[0]:
        color = "#{:02x}{:02x}{:02x}".format(*info.color)
        alpha = "0" if legend.multilabel and info.background else "255"
        ET.SubElement(
            palette, "paletteEntry", value=str(info.value), color=color, alpha=alpha, label=xml_text(info.name)
        )
    atomic_write_bytes(path, qgis_bytes(root))
    return path


def read_legend(mask_path: Path) -> Legend | None:
    """Classes of a mask, ours or anybody's.

    Our own tag first; else the category names of `<mask>.aux.xml` with the colours of the file's colour table. None
    where names are missing: colours alone say nothing.

    Raises:
        RasterioError: The mask cannot be opened.
    """
    with rasterio.open(mask_path, driver="GTiff") as source:
        tags = source.tags()
        ours = _from_tag(tags.get(LEGEND_TAG, ""), multilabel=tags.get(MULTILABEL_TAG) == "YES")
        if ours is not None and ours.num_mask_bands == source.count:
            return ours
        try:
            colors: dict[int, tuple[int, ...]] = source.colormap(1)
        except ValueError:
            colors = {}
    names = _category_names(mask_path.with_name(f"{mask_path.name}.aux.xml"))
    if not names:
        return None
    plain = default_legend(names)
    return Legend(
        tuple(
            ClassInfo(value=c.value, name=c.name, color=_rgb(colors[c.value]) if c.value in colors else c.color)
            for c in plain
        )
    )


def _from_tag(text: str, *, multilabel: bool) -> Legend | None:
    try:
        rows: list[dict[str, Any]] = json.loads(text)
        if not rows:
            return None
        return Legend(
            tuple(
                ClassInfo(
                    value=int(row["value"]),
                    name=str(row["name"]),
                    color=_rgb(tuple(row["color"])),
                    background=bool(row["background"]),
                )
                for row in rows
            ),
            multilabel=multilabel,
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _category_names(path: Path) -> list[str]:
    """Names in a PAM file; none where it is absent, huge, or not one. It may come from anywhere."""
    try:
        if path.stat().st_size > _MAX_XML_BYTES:
            return []
        data = path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities that expand without end
            return []
        root = ET.fromstring(data)  # noqa: S314 - no document type, hence no entities
    except (OSError, ET.ParseError):
        return []
    return [category.text or "" for category in root.findall("PAMRasterBand[@band='1']/CategoryNames/Category")]


def _rgb(color: tuple[int, ...]) -> tuple[int, int, int]:
    red, green, blue = (min(max(int(c), 0), 255) for c in color[:3])
    return red, green, blue
