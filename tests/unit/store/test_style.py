"""Names and colours beside a mask, and reading them back."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio

from pipeline.legend import ClassInfo, Legend, default_legend
from pipeline.store import read_legend, write_class_names, write_mask_cog, write_qgis_style

from .helpers import NORTH_UP, Scene, geobox_of, smooth_mask

if TYPE_CHECKING:
    from pathlib import Path

NASTY = [
    "<img src=x onerror=alert(1)>",
    "quo\"te & 'apostrophe'",
    "größe 森林",
    "]]>",
    "&amp;",
    "  ",
    "bell\x07",
    "\ud800",
]


def _mask(path: Path, legend: Legend) -> Path:
    scene = Scene(smooth_mask((90, 90), classes=(0, 1)), 64)
    write_mask_cog(
        path,
        read=scene.read,
        tiles=scene.tiles,
        digests=scene.digests,
        geobox=geobox_of(scene.shape),
        legend=legend,
    )
    return path


def _foreign(path: Path, colors: dict[int, tuple[int, int, int, int]] | None = None) -> Path:
    with rasterio.open(path, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", transform=NORTH_UP) as out:
        out.write(np.zeros((1, 4, 4), np.uint8))
        if colors:
            out.write_colormap(1, colors)
    return path


def test_our_own_legend_comes_back_whole(tmp_path: Path) -> None:
    legend = Legend(
        tuple(
            ClassInfo(value=i, name=name, color=(i, 2 * i, 255 - i), background=i == 2)
            for i, name in enumerate(NASTY[:-1])
        )
    )
    mask = _mask(tmp_path / "mask.tif", legend)
    assert read_legend(mask) == legend
    write_class_names(mask, legend)
    assert read_legend(mask) == legend


def test_names_come_from_the_file_beside_and_colours_from_within(tmp_path: Path) -> None:
    mask = _foreign(tmp_path / "mask.tif", {0: (1, 2, 3, 255), 1: (9, 8, 7, 255)})
    assert read_legend(mask) is None
    write_class_names(mask, default_legend(["water", "<b>land</b>"]))
    found = read_legend(mask)
    assert found is not None
    assert [c.name for c in found] == ["water", "<b>land</b>"]
    assert [c.color for c in found] == [(1, 2, 3), (9, 8, 7)]


def test_without_colours_there_are_default_ones(tmp_path: Path) -> None:
    mask = _foreign(tmp_path / "mask.tif")
    write_class_names(mask, default_legend(["a", "b"]))
    assert read_legend(mask) == default_legend(["a", "b"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<PAMDataset>",
        b"<PAMDataset/>",
        b"\xff\xfe\x00",
        (
            b'<!DOCTYPE x [<!ENTITY a "aaaa">]><PAMDataset><PAMRasterBand band="1">'
            b"<CategoryNames><Category>&a;</Category></CategoryNames></PAMRasterBand></PAMDataset>"
        ),
    ],
)
def test_a_strange_file_beside_a_mask_is_no_legend(tmp_path: Path, content: bytes) -> None:
    mask = _foreign(tmp_path / "mask.tif")
    (tmp_path / "mask.tif.aux.xml").write_bytes(content)
    assert read_legend(mask) is None


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "[]x",
        "{}",
        "[1]",
        '[{"value": 3, "name": "a", "color": [1,2,3], "background": 0}]',
        '[{"value": 0, "name": "a", "color": "red", "background": 0}]',
    ],
)
def test_a_strange_tag_is_no_legend(tmp_path: Path, tag: str) -> None:
    mask = _foreign(tmp_path / "mask.tif")
    with rasterio.open(mask, "r+") as out:
        out.update_tags(SCENEMASK_LEGEND=tag)
    assert read_legend(mask) is None


def test_t12_names_are_escaped_in_both_files(tmp_path: Path) -> None:
    legend = default_legend(NASTY)
    names = write_class_names(tmp_path / "mask.tif", legend)
    style = write_qgis_style(tmp_path / "mask.qml", legend)
    for path in (names, style):
        text = path.read_text("utf-8")
        assert "<img" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
        ET.fromstring(text)
    labels = [e.get("label") for e in ET.parse(style).getroot().iter("paletteEntry")]
    categories = [e.text for e in ET.parse(names).getroot().iter("Category")]
    assert labels[:6] == NASTY[:6] == categories[:6]
    assert labels[6:] == ["bell\ufffd", "\ufffd"] == categories[6:]


def test_style_and_attribute_table_hold_the_colours(tmp_path: Path) -> None:
    legend = default_legend(["a", "b"])
    style = ET.parse(write_qgis_style(tmp_path / "mask.qml", legend)).getroot()
    entries = [(e.get("value"), e.get("color")) for e in style.iter("paletteEntry")]
    assert entries == [("0", "#e69f00"), ("1", "#56b4e9")]
    renderer = style.find("pipe/rasterrenderer")
    assert renderer is not None
    assert renderer.get("type") == "paletted"
    names = ET.parse(write_class_names(tmp_path / "mask.tif", legend)).getroot()
    rows = [[f.text for f in row.findall("F")] for row in names.iter("Row")]
    assert rows == [["0", "a", "230", "159", "0"], ["1", "b", "86", "180", "233"]]
