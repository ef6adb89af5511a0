"""item.json: fields, checksums, and nothing private."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import referencing
from rasterio.crs import CRS

from pipeline.legend import default_legend
from pipeline.store import ResultFile, build_item
from pipeline.store.stac import scene_name, slug

from .helpers import geobox_of

WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
RESULTS = [
    ResultFile(name=name, size_bytes=10 + i, sha256=f"{i:064x}")
    for i, name in enumerate(["mask.tif", "polygons.geojson", "probabilities.tif", "preview.png", "item.json"])
]


def _item(**changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "scene": "/data/s2_tile.tif",
        "moment": WHEN,
        "geobox": geobox_of((300, 400)),
        "legend": default_legend(
            ["background", "<img onerror=1>", "crops & co", "crops   co"], background="background"
        ),
        "files": RESULTS,
        "software": {"scenemask": "0.1.0"},
    }
    return build_item(**{**options, **changes})


def _schema_validator() -> jsonschema.Draft7Validator:
    """The schemas that ship with pystac, found by their file names; no network."""
    folder = files("pystac.validation") / "jsonschemas"
    paths = [path for part in ("stac-spec/v1.1.0", "geojson") for path in (folder / part).iterdir()]
    schemas = {path.name: json.loads(path.read_text()) for path in paths if path.name.endswith(".json")}

    def retrieve(uri: str) -> referencing.Resource[Any]:
        return referencing.Resource.from_contents(schemas[uri.partition("#")[0].rpartition("/")[2]])

    registry: Any = referencing.Registry(retrieve=retrieve)  # type: ignore[call-arg]
    return jsonschema.Draft7Validator(schemas["item.json"], registry=registry)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"geobox": geobox_of((30, 40), crs_wkt=None)},
        {"moment": (WHEN, WHEN + timedelta(days=1))},
        {"geobox": geobox_of((30, 40), crs_wkt=CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=20 +units=m").to_wkt())},
    ],
)
def test_the_item_is_valid_by_the_published_schema(changes: dict[str, Any]) -> None:
    item = json.loads(json.dumps(_item(**changes), allow_nan=False))
    errors = [error.message for error in _schema_validator().iter_errors(item)]
    assert errors == []
    broken = {**item, "properties": {}}
    assert list(_schema_validator().iter_errors(broken)), "the schema would take anything"


def test_fields_of_the_extensions() -> None:
    item = _item()
    told = item["properties"]
    assert item["stac_version"] == "1.1.0"
    assert told["datetime"] == "2024-05-06T07:08:09Z"
    assert told["proj:code"] == "EPSG:32633"
    assert told["proj:shape"] == [300, 400]
    assert told["proj:transform"] == [10, 0, 500_000, 0, -10, 4_600_000]
    assert told["processing:software"] == {"scenemask": "0.1.0"}
    assert {url.split("/")[3] for url in item["stac_extensions"]} == {
        "processing",
        "projection",
        "file",
        "classification",
        "raster",
    }
    mask = item["assets"]["mask"]
    assert mask["href"] == "mask.tif"
    assert mask["file:size"] == 10
    assert mask["file:checksum"] == "1220" + "0" * 64
    assert mask["type"].endswith("profile=cloud-optimized")
    assert set(item["assets"]) == {"mask", "polygons", "probabilities", "preview"}
    assert item["assets"]["probabilities"]["bands"][1]["raster:scale"] == 1 / 250


def test_classes_have_machine_names_and_titles() -> None:
    classes = _item()["assets"]["mask"]["classification:classes"]
    assert [c["value"] for c in classes] == [0, 1, 2, 3, 255]
    assert [c["name"] for c in classes] == ["background", "img_onerror_1", "crops_co", "crops_co_3", "nodata"]
    assert classes[1]["title"] == "<img onerror=1>"
    assert classes[1]["color_hint"] == "56B4E9"
    assert classes[-1]["nodata"] is True


def test_a_range_of_time() -> None:
    told = _item(moment=(WHEN, WHEN + timedelta(hours=1)))["properties"]
    assert told["datetime"] is None
    assert told["start_datetime"] == "2024-05-06T07:08:09Z"
    assert told["end_datetime"] == "2024-05-06T08:08:09Z"


def test_a_moment_without_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        _item(moment=datetime(2024, 1, 1))  # noqa: DTZ001


def test_c5_without_a_crs_there_is_no_place() -> None:
    item = _item(geobox=geobox_of((30, 40), crs_wkt=None))
    assert item["geometry"] is None
    assert "bbox" not in item
    assert item["properties"]["proj:code"] is None


def test_c13_a_crs_without_a_code_is_told_as_wkt2() -> None:
    wkt = CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=20 +units=m").to_wkt()
    told = _item(geobox=geobox_of((30, 40), crs_wkt=wkt))["properties"]
    assert told["proj:code"] is None
    assert told["proj:wkt2"].startswith("PROJCRS[")


@pytest.mark.parametrize(
    ("scene", "name"),
    [
        ("https://user:secret@host/a/b/scene.tif?X-Amz-Signature=canary&sv=1", "scene.tif"),
        ("s3://bucket/canary/scene.tif", "scene.tif"),
        ("/home/canary/scene.tif", "scene.tif"),
        ("scene.tif?token=canary", "scene.tif"),
        ("https://host/scene.zarr/", "scene.zarr"),
        ("https://user:canary@host", "scene"),
        ("/vsicurl/https://host/x.tif?sig=canary#frag", "x.tif"),
    ],
)
def test_t13_nothing_private_is_told(scene: str, name: str) -> None:
    item = _item(scene=scene)
    assert scene_name(scene) == name
    assert item["links"] == [{"rel": "derived_from", "href": name, "title": f"Scene {name}"}]
    assert "canary" not in json.dumps(item)
    assert "secret" not in json.dumps(item)


def test_b16_names_of_any_kind_make_a_link_and_an_id() -> None:
    item = _item(scene="/x/my scene #1%20 ü.tif")
    assert item["links"][0]["href"] == "my%20scene%20%231%2520%20%C3%BC.tif"
    assert set(item["id"]) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@pytest.mark.parametrize("name", ["../../x", "/absolute", "nul\0", "y" * 300, "...", "", "ü", "a b", "A.tif"])
def test_t6_slugs_are_short_plain_and_distinct(name: str) -> None:
    made = slug(name)
    assert 0 < len(made) <= 120
    assert made.strip("-.") == made
    assert "/" not in made
    assert slug(name + "x.tif") != made
    assert slug("s2_tile.tif") == "s2_tile"
    assert slug("a b.tif") != slug("a-b.tif")
