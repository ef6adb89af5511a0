"""Our files as other software reads them: rio-cogeo's validator, GDAL's own view, pystac."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
from rasterio.warp import transform_bounds
from rio_cogeo.cogeo import cog_validate

from pipeline.legend import default_legend
from pipeline.store import (
    ResultFile,
    build_item,
    quantize_probabilities,
    write_class_names,
    write_mask_cog,
    write_probability_cog,
)
from tests.unit.store.helpers import Scene, geobox_of, smooth_mask

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["background", "<img onerror=alert(1)>", 'a "b" & c', "größe", "森林", "last"]


def _mask(path: Path, shape: tuple[int, int]) -> Scene:
    scene = Scene(smooth_mask(shape), 300)
    write_mask_cog(
        path,
        read=scene.read,
        tiles=scene.tiles,
        digests=scene.digests,
        geobox=geobox_of(shape),
        legend=default_legend(NAMES, background="background"),
    )
    return scene


@pytest.mark.parametrize("shape", [(1, 1), (300, 200), (513, 514), (1500, 2300)])
def test_masks_are_valid_cogs(tmp_path: Path, shape: tuple[int, int]) -> None:
    _mask(tmp_path / "mask.tif", shape)
    assert cog_validate(tmp_path / "mask.tif", strict=True) == (True, [], [])


@pytest.mark.parametrize("classes", [5, 70])
def test_probabilities_are_valid_cogs(tmp_path: Path, classes: int) -> None:
    rng, names = np.random.default_rng(0), (NAMES * 20)[:classes]
    scene = Scene(quantize_probabilities(rng.random((classes, 1200, 700)).astype(np.float32)), 300)
    write_probability_cog(
        tmp_path / "p.tif",
        read=scene.read,  # type: ignore[arg-type]
        tiles=scene.tiles,
        digests=scene.digests,
        geobox=geobox_of(scene.shape),
        legend=default_legend(names),
    )
    assert cog_validate(tmp_path / "p.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "p.tif") as source:
        assert source.descriptions == tuple(names)


def test_gdal_sees_names_colours_and_nodata(tmp_path: Path) -> None:
    _mask(tmp_path / "mask.tif", (600, 600))
    write_class_names(tmp_path / "mask.tif", default_legend(NAMES))
    # rasterio has no call for category names; a VRT made by GDAL writes out what GDAL knows.
    rasterio.shutil.copy(str(tmp_path / "mask.tif"), str(tmp_path / "view.vrt"), driver="VRT")
    root = ET.parse(tmp_path / "view.vrt").getroot()
    assert [e.text for e in root.iter("Category")] == NAMES
    entries = [[int(e.get(c, "-1")) for c in ("c1", "c2", "c3", "c4")] for e in root.iter("Entry")]
    assert entries[: len(NAMES)] == [[*c.color, 255] for c in default_legend(NAMES, background="background")]
    assert entries[255] == [0, 0, 0, 0]
    assert [e.text for e in root.iter("NoDataValue")] == ["255"]
    with rasterio.open(tmp_path / "mask.tif") as source:
        mask = source.read(1, masked=True)
    assert mask.mask[0, 0]
    assert not mask.mask[-1, -1]


def test_a_decimated_read_by_gdal_takes_our_overview(tmp_path: Path) -> None:
    _mask(tmp_path / "mask.tif", (1024, 2048))
    with rasterio.open(tmp_path / "mask.tif") as source:
        assert source.overviews(1) == [2, 4]
        small = source.read(1, out_shape=(256, 512))
    with rasterio.open(tmp_path / "mask.tif", overview_level=1) as source:
        np.testing.assert_array_equal(source.read(1), small)


def test_pystac_reads_the_item_and_agrees_about_the_place(tmp_path: Path) -> None:
    geobox = geobox_of((600, 800))
    told: dict[str, Any] = build_item(
        scene="x.tif",
        moment=datetime(2024, 1, 1, tzinfo=UTC),
        geobox=geobox,
        legend=default_legend(NAMES),
        files=[ResultFile(name="mask.tif", size_bytes=1, sha256="00" * 32)],
        software={"scenemask": "1"},
    )
    item = pystac.Item.from_dict(told)
    assert item.datetime == datetime(2024, 1, 1, tzinfo=UTC)
    assert list(item.assets) == ["mask"]
    right, bottom = geobox.transform @ (800, 600)
    expected = transform_bounds("EPSG:32633", "OGC:CRS84", 500_000, bottom, right, 4_600_000, densify_pts=64)
    assert item.bbox == pytest.approx(expected, abs=1e-5)
