from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling

from pipeline.scene import describe_scene, open_scene
from tests.unit.scene.rasters import noise, write_tif

if TYPE_CHECKING:
    from pathlib import Path


def test_everything_is_json(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "d.tif", noise(2, 600, 700, dtype="float32"), nodata=np.nan, descriptions=("a", ""))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    told = describe_scene(open_scene(path))
    json.dumps(told, allow_nan=False)
    assert told["driver"] == "GTiff"
    assert told["crs"] == {
        "name": "WGS 84 / UTM zone 33N",
        "authority": "EPSG:32633",
        "units": "metre",
        "geographic": False,
    }
    assert told["nodata"] == "nan"
    assert told["overviews"] == [2]
    assert told["orientation"] == "north-up"
    assert [b["name"] for b in told["bands"]] == ["a", "2"]  # type: ignore[index,union-attr,call-overload]


def test_ground_size_and_footprint_of_degrees(tmp_path: Path) -> None:
    transform = Affine(0.001, 0, 179.95, 0, -0.002, 60.1)
    told = describe_scene(
        open_scene(write_tif(tmp_path / "d.tif", noise(1, 100, 100), crs="EPSG:4326", transform=transform))
    )
    row_m, col_m = np.array(told["pixel_size_m"])
    assert row_m == pytest.approx(0.002 * 111_412, rel=1e-3)  # a degree of latitude at 60 N
    assert col_m == pytest.approx(0.001 * 55_800, rel=1e-3)
    ring = np.array(told["footprint_lonlat"])
    assert ring[0].tolist() == ring[-1].tolist() == [179.95, 60.1]
    assert ring[:, 0].max() == pytest.approx(180.05)  # c10: across the antimeridian in one piece


def test_south_up_and_rotated(tmp_path: Path) -> None:
    south = write_tif(tmp_path / "s.tif", noise(1, 8, 8), transform=Affine(2, 0, 5e5, 0, 2, 5e6))
    assert describe_scene(open_scene(south))["orientation"] == "south-up"
    turned = write_tif(tmp_path / "r.tif", noise(1, 8, 8), transform=Affine(2, 1, 5e5, 1, -2, 5e6))
    assert describe_scene(open_scene(turned))["orientation"] == "rotated or sheared"


def test_local_or_missing_crs_has_no_ground(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "n.tif", noise(1, 8, 8), crs=None)
    told = describe_scene(open_scene(path, allow_no_crs=True))
    assert told["crs"] is told["pixel_size_m"] is told["footprint_lonlat"] is None
    wkt = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["E",EAST],AXIS["N",NORTH]]'
    told = describe_scene(open_scene(write_tif(tmp_path / "l.tif", noise(1, 8, 8), crs=wkt)))
    assert told["pixel_size_m"] is None
    json.dumps(told)


@pytest.mark.parametrize("size", [40, 1500])
def test_valid_share_is_near_the_truth(tmp_path: Path, size: int) -> None:
    data = np.ones((1, size, size), np.uint8)
    data[0, :, : size // 20] = 0  # a thin collar, which looks at fixed places would miss
    data[0, : size // 4] = 0
    path = write_tif(tmp_path / "v.tif", data, nodata=0, tiled=True, blockxsize=256, blockysize=256)
    told = describe_scene(open_scene(path))
    assert told["valid_frac"] == pytest.approx((data > 0).mean(), abs=0.02)
