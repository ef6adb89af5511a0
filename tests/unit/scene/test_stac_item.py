"""What an item says of its bands, and what is not believed."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.access import Access
from pipeline.errors import InputError, PipelineError, UsageError
from pipeline.scene import open_scene
from pipeline.scene.stac import open_item
from tests.scenes import NORTH_UP, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path


def item(**assets: Any) -> dict[str, Any]:
    return {"type": "Feature", "stac_version": "1.1.0", "id": "i", "properties": {}, "assets": assets}


def asset(name: str, **more: Any) -> dict[str, Any]:
    return {"href": f"./{name}.tif", "type": "image/tiff; application=geotiff", **more}


def saved(folder: Path, document: object) -> Path:
    path = folder / "item.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two bands of 10 m, one of 20 m, all over the same ground."""
    write_scene(tmp_path / "a.tif", smooth_values(1, (40, 60), seed=1))
    write_scene(tmp_path / "b.tif", smooth_values(1, (40, 60), seed=2))
    with rasterio.open(tmp_path / "b.tif", "r+") as file:
        file.scales = (0.5,)
    write_scene(tmp_path / "c.tif", smooth_values(1, (20, 30), seed=3), transform=NORTH_UP @ Affine.scale(2))
    return tmp_path


def test_bands_are_found_by_key_name_common_name_and_wavelength(files: Path) -> None:
    document = item(
        first=asset("a", bands=[{"name": "B02", "eo:common_name": "blue"}]),
        second=asset("b", **{"eo:bands": [{"name": "B08", "common_name": "nir"}]}),
        third=asset("c", bands=[{"eo:center_wavelength": 1.61}]),
    )
    path = saved(files, document)
    for names in (("first", "second", "third"), ("B02", "b08", "third"), ("blue", "nir", "swir16")):
        scene = open_scene(path, bands=names)
        assert [band.index for band in scene.bands] == [1, 2, 3]
        assert scene.geobox.shape == (40, 60)
    assert open_scene(path, bands=["third"]).geobox.shape == (20, 30)


def test_a_name_of_several_bands_is_nobodys(files: Path) -> None:
    document = item(
        a=asset("a", **{"eo:bands": [{"name": "B05", "common_name": "rededge"}]}),
        b=asset("b", **{"eo:bands": [{"name": "B06", "common_name": "rededge"}]}),
    )
    with pytest.raises(InputError, match="IN-011"):
        open_scene(saved(files, document), bands=["rededge"])


@pytest.mark.parametrize(
    ("told", "properties", "expected"),
    [
        ({}, {}, (0.5, 0.0, "file")),
        ({"raster:bands": [{"scale": 1e-4, "offset": -0.1}]}, {}, (1e-4, -0.1, "STAC raster:scale, raster:offset")),
        ({"bands": [{"raster:scale": 1e-4}]}, {}, (1e-4, 0.0, "STAC raster:scale, raster:offset")),
        (
            {"raster:bands": [{"scale": 1e-4, "offset": -0.1}]},
            {"earthsearch:boa_offset_applied": True},
            (1e-4, 0.0, "STAC raster:scale; offset left out: earthsearch:boa_offset_applied"),
        ),
    ],
)
def test_c27_one_source_says_what_scale_and_offset_are(
    files: Path, told: dict[str, Any], properties: dict[str, Any], expected: tuple[float, float, str]
) -> None:
    document = item(b=asset("b", **told))
    document["properties"] = properties
    (band,) = open_scene(saved(files, document)).bands
    assert (band.scale, band.offset, band.truth) == expected


def test_pictures_and_quality_layers_are_no_bands(files: Path) -> None:
    document = item(
        red=asset("a"),
        scl=asset("b", roles=["data"]),
        visual=asset("c", roles=["visual"]),
        thumb={"href": "t.png", "type": "image/png", "roles": ["thumbnail"]},
    )
    product = open_item(saved(files, document), Access())
    assert [band.name for band in product.bands] == ["red"]
    assert [layer.band.name for layer in product.layers] == ["scl", "visual"]


def test_what_lies_elsewhere_is_no_band_of_the_scene(files: Path) -> None:
    write_scene(files / "d.tif", smooth_values(1, (40, 60)), transform=NORTH_UP @ Affine.translation(3, 0))
    write_scene(files / "e.tif", smooth_values(1, (40, 60)), crs="EPSG:32634")
    for other in ("d", "e"):
        with pytest.raises(InputError, match="IN-051"):
            open_scene(saved(files, item(a=asset("a"), other=asset(other))))


def test_nodata_of_the_item_counts_where_the_file_is_silent(files: Path) -> None:
    data = np.full((1, 40, 60), 7, np.uint16)
    data[0, 0, 0] = 0
    write_scene(files / "a.tif", data)
    scene = open_scene(saved(files, item(a=asset("a", nodata=0))))
    from pipeline.grid import Window

    assert not scene.read_block(Window(row_off=0, col_off=0, height=2, width=2)).valid[0, 0, 0]


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ([], "IN-050"),
        ({"type": "Catalog"}, "IN-050"),
        ({"type": "FeatureCollection", "features": [item(a=asset("a"))] * 2}, "IN-052"),
        (item(), "IN-054"),
        (item(a={"href": "a.tif", "type": "text/html"}), "IN-054"),
        (item(a=asset("a", href="/vsicurl/http://h/a.tif")), "IN-053"),
        (item(a=asset("a", href="gopher://h/a.tif")), "CF-050"),
        (item(a=asset("a", href="no.tif")), "IN-001"),
    ],
)
def test_items_that_cannot_be_used(files: Path, document: object, code: str) -> None:
    with pytest.raises(PipelineError, match=code):
        open_scene(saved(files, document))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(data=st.data())
def test_nonsense_ends_in_one_of_our_errors(files_once: Path, data: st.DataObject) -> None:
    keys = ("href", "type", "roles", "bands", "eo:bands", "raster:bands", "nodata", "scale")
    broken = data.draw(st.dictionaries(st.sampled_from(keys), _JSON, max_size=4))
    document = item(a={**asset("a"), **broken}, b=data.draw(_JSON))
    document |= data.draw(st.dictionaries(st.sampled_from(("type", "assets", "properties", "id")), _JSON, max_size=1))
    with contextlib.suppress(UsageError, InputError):
        open_scene(saved(files_once, document))


@pytest.fixture(scope="module")
def files_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    write_scene(folder / "a.tif", smooth_values(1, (40, 60), seed=1))
    return folder
