"""`item.json`: the results as one STAC 1.1 item, footprint in longitude and latitude included. No network."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pystac
from pyproj import CRS

from pipeline.store.footprint import footprint_lonlat
from pipeline.store.probabilities import PROBABILITY_NODATA, PROBABILITY_STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pipeline.grid import GeoBox
    from pipeline.legend import ClassInfo, Legend

_EXTENSIONS = (
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
)
_RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
# Result's name -> (asset key, media type, roles, title)
_ASSETS: dict[str, tuple[str, str, list[str], str]] = {
    "mask.tif": ("mask", _COG, ["data"], "Class of each pixel"),
    "probabilities.tif": ("probabilities", _COG, ["data"], "Probability of each class"),
    "polygons.geojson": ("polygons", "application/geo+json", ["data"], "Polygons"),
    "polygons.gpkg": ("polygons-gpkg", "application/geopackage+sqlite3", ["data"], "Polygons"),
    "polygons.fgb": ("polygons-fgb", "application/vnd.flatgeobuf", ["data"], "Polygons"),
    "polygons.parquet": ("polygons-parquet", "application/vnd.apache.parquet", ["data"], "Polygons"),
    "preview.png": ("preview", "image/png", ["thumbnail"], "Scene and mask"),
    "mask.qml": ("style", "text/xml", ["metadata"], "QGIS style"),
    "mask.tif.aux.xml": ("class-names", "text/xml", ["metadata"], "Class names for GDAL"),
    "run.json": ("run", "application/json", ["metadata"], "Record of the run"),
}
_MAX_ID_BYTES = 120
_SHA2_256 = "1220"  # multihash: the code of sha2-256, then the length, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFile:
    """One file that an item lists."""

    name: str
    """Name in the output folder."""
    size_bytes: int
    sha256: str
    """64 hex digits."""


def build_item(
    *,
    scene: str,
    moment: datetime | tuple[datetime, datetime],
    geobox: GeoBox,
    legend: Legend,
    files: Sequence[ResultFile],
    software: Mapping[str, str],
    properties: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The item of one run.

    Args:
        scene: Path or URL of the scene. Only its last component is used: what stands before and behind may be private.
        moment: When the scene was taken, or first and last moment of a mosaic; with a time zone.
        geobox: Of the mask.
        legend: Classes of the mask.
        files: Results, in the order in which they shall appear; those that are no asset (`item.json`) are left out.
        software: Name -> version.
        properties: Further properties, JSON values.

    Returns:
        JSON-ready. Without a CRS `geometry` is null and `bbox` absent, as the specification allows.

    Raises:
        ValueError: `moment` has no time zone.
    """
    start, end = moment if isinstance(moment, tuple) else (moment, moment)
    if start.tzinfo is None or end.tzinfo is None:
        msg = "a STAC item needs moments with a time zone, got one without"
        raise ValueError(msg)
    name = scene_name(scene)
    footprint = footprint_lonlat(geobox)
    is_range = isinstance(moment, tuple)
    item = pystac.Item(
        id=slug(name),
        geometry=footprint.geometry if footprint else None,
        bbox=footprint.bbox if footprint else None,
        datetime=None if is_range else start,
        start_datetime=start if is_range else None,
        end_datetime=end if is_range else None,
        properties={**_properties(geobox, software), **(properties or {})},
        stac_extensions=[*_EXTENSIONS, *([_RASTER] if "probabilities.tif" in {f.name for f in files} else [])],
    )
    for file in files:
        if file.name in _ASSETS:
            key, asset = _asset(file, legend)
            item.add_asset(key, asset)
    told: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    told["links"] = [{"rel": "derived_from", "href": quote(name), "title": f"Scene {name}"}]
    if footprint is None:
        told.pop("bbox", None)
    return told


def scene_name(scene: str) -> str:
    """File name of a scene's path or URL: no folders, no user, no query with its signature."""
    path = urlsplit(scene).path if "://" in scene else scene.partition("?")[0]
    return path.rstrip("/").rpartition("/")[2] or "scene"


def slug(name: str) -> str:
    """`name` as an identifier of `[A-Za-z0-9._-]`, at most 120 bytes; different names keep different slugs."""
    stem = name.rpartition(".")[0] or name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")
    if plain and plain == stem and len(plain) <= _MAX_ID_BYTES:
        return plain
    return f"{plain[: _MAX_ID_BYTES - 9] or 'scene'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _properties(geobox: GeoBox, software: Mapping[str, str]) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "processing:level": "L4",
        "processing:software": dict(software),
        "proj:shape": list(geobox.shape),
        "proj:transform": [float(v) for v in list(geobox.transform)[:6]],
        "proj:code": None,
    }
    if geobox.crs_wkt is not None:
        properties |= _crs_fields(geobox.crs_wkt)
    return properties


def _asset(file: ResultFile, legend: Legend) -> tuple[str, pystac.Asset]:
    key, media_type, roles, title = _ASSETS[file.name]
    extra: dict[str, Any] = {"file:size": file.size_bytes, "file:checksum": _SHA2_256 + file.sha256}
    if key == "mask":
        extra |= _overlapping(legend) if legend.multilabel else _exclusive(legend)
    if key == "probabilities":
        extra["bands"] = [
            {
                "name": c.name,
                "data_type": "uint8",
                "nodata": PROBABILITY_NODATA,
                "raster:scale": 1 / PROBABILITY_STEPS,
                "raster:offset": 0.0,
            }
            for c in legend
        ]
    return key, pystac.Asset(href=file.name, media_type=media_type, roles=roles, title=title, extra_fields=extra)


def _exclusive(legend: Legend) -> dict[str, Any]:
    """Fields of a mask with one band of class values."""
    bands = [{"name": "class", "data_type": legend.dtype, "nodata": legend.nodata}]
    return {"classification:classes": _classes(legend), "bands": bands}


def _overlapping(legend: Legend) -> dict[str, Any]:
    """Fields of a mask with a band per class."""
    taken = {"absent", "nodata"}

    def values(info: ClassInfo) -> list[dict[str, Any]]:
        hint = "{:02X}{:02X}{:02X}".format(*info.color)
        name = _class_name(info.name, info.value, taken)
        return [
            {"value": 0, "name": "absent", "title": f"not {info.name}"},
            {"value": 1, "name": name, "title": info.name, "color_hint": hint},
            {"value": legend.nodata, "name": "nodata", "nodata": True},
        ]

    bands = [
        {"name": c.name, "data_type": legend.dtype, "nodata": legend.nodata, "classification:classes": values(c)}
        for c in legend
    ]
    return {"bands": bands}


def _classes(legend: Legend) -> list[dict[str, Any]]:
    taken: set[str] = set()
    rows = [
        {
            "value": c.value,
            "name": _class_name(c.name, c.value, taken),
            "title": c.name,
            "color_hint": "{:02X}{:02X}{:02X}".format(*c.color),
        }
        for c in legend
    ]
    return [*rows, {"value": legend.nodata, "name": _class_name("nodata", legend.nodata, taken), "nodata": True}]


def _class_name(name: str, value: int, taken: set[str]) -> str:
    """A machine-readable name, as the extension asks for: letters, digits, dash and underscore, each name once."""
    plain = re.sub(r"[^0-9A-Za-z_-]+", "_", name).strip("_") or f"class_{value}"
    unique = f"{plain}_{value}" if plain in taken else plain
    taken.add(unique)
    return unique


def _crs_fields(wkt: str) -> dict[str, Any]:
    crs = CRS.from_user_input(wkt)
    authority = crs.to_authority(min_confidence=100)
    if authority is not None:
        return {"proj:code": ":".join(authority)}
    return {"proj:code": None, "proj:wkt2": crs.to_wkt("WKT2_2019")}
