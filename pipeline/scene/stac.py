"""A STAC item as a product: which band each asset has, by `bands`, `eo:bands`, key or wavelength. Opens no raster.

Nothing in an item is trusted: fields of another type than the specification's are as good as absent, and references
lead only where the person who gave the item could have pointed to.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin

from pipeline.errors import InputError
from pipeline.location import Location, is_remote, parse_location
from pipeline.scene.bands import SENTINEL2, color_of, name_of_wavelength
from pipeline.scene.base import Band
from pipeline.scene.product import Offer, Product, numbered
from pipeline.scene.remote import remote_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.access import Access
    from pipeline.scene.base import Json

MAX_BYTES = 16 * 2**20
"""Of an item."""
_RASTERS = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff", "application/x-geotiff", "application/geotiff")
_SUFFIXES = (".tif", ".tiff", ".jp2")
_NO_MEASUREMENT = frozenset({"thumbnail", "overview", "visual", "metadata", "browse"})
_LAYERS = frozenset({"scl", "qa_pixel", "qa_radsat", "qa_aerosol", "qa", "cloud", "snow", "fmask", "aot", "wvp"})
_CLASSES = frozenset({"cloud", "cloud-shadow", "snow-ice", "water-mask", "saturation", "data-mask"})


_CHOSEN = re.compile(r"(?P<document>.*\.(?:geo)?json(?:\?[^#]*)?)#(?P<id>.+)", re.IGNORECASE | re.DOTALL)


def is_item(source: str | os.PathLike[str] | Location) -> bool:
    """Whether a path or an address is meant as an item: it ends in `.json` or `.geojson`, or that and `#ID`."""
    name = source.name if isinstance(source, Location) else _split(source)[0]
    return name.partition("?")[0].lower().endswith((".json", ".geojson"))


def _split(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Where a document lies, and which of its items is meant; None without a choice."""
    text = os.fspath(source)
    match = _CHOSEN.fullmatch(text)
    return (text, None) if match is None else (match["document"], match["id"])


def open_item(source: str | os.PathLike[str] | Location, access: Access) -> Product:
    """The product that an item describes.

    Args:
        source: Path or address of the item, or of an ItemCollection with one item; of several, followed by `#ID`.
        access: How servers are reached.

    Raises:
        InputError: IN-001, IN-040 to IN-042, it is not there; IN-050, it is no item; IN-052, it holds several;
            IN-053, an asset lies where this item may not point to; IN-054, it has no band.
    """
    document, chosen = (source, None) if isinstance(source, Location) else _split(source)
    where = parse_location(document) if is_remote(document) else Path(document).absolute()  # type: ignore[arg-type]
    item = _item_in(_document(where, access), str(where), chosen)
    properties = _dict(item.get("properties"))
    offers: list[Offer] = []
    layers: list[Offer] = []
    for key, asset in _dict(item.get("assets")).items():
        if _is_raster(_dict(asset)):
            found = list(_offers(key, asset, properties, where))
            (layers if _is_layer(key, asset) else offers).extend(found)
    if not offers:
        raise InputError(
            f"the item has no asset with measurements; it has {', '.join(_dict(item.get('assets'))) or 'none at all'}",
            code="IN-054",
            title="No bands found",
            where=str(where),
            fix="give one of its files instead",
        )
    return Product(
        name=str(item.get("id") or Path(str(where)).stem),
        path=str(where) if chosen is None else f"{where}#{chosen}",
        kind="STAC item",
        offers=numbered(offers),
        layers=tuple(layers),
        facts=_facts(properties),
    )


def _document(where: Path | Location, access: Access) -> object:
    if isinstance(where, Location):
        file = remote_file(where, access)
        size = file.facts().size
        raw = file.read(0, size) if 0 < size <= MAX_BYTES else b""
    else:
        try:
            size = where.stat().st_size
            raw = where.read_bytes() if size <= MAX_BYTES else b""
        except (OSError, ValueError) as error:
            raise InputError(
                f"there is no file {where}" if isinstance(error, FileNotFoundError) else f"{where.name}: {error}",
                code="IN-001",
                title="Scene not found",
                where=str(where),
                fix="check the path",
            ) from error
    if size > MAX_BYTES:
        raise _no_item(str(where), f"it has {size / 1e6:.0f} MB, at most {MAX_BYTES / 1e6:.0f} MB are read")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _no_item(str(where), f"it is no JSON: {str(error)[:100]}") from error


def _item_in(document: object, where: str, chosen: str | None) -> dict[str, Any]:
    item = _dict(document)
    if item.get("type") == "FeatureCollection" or chosen is not None:
        found = [_dict(feature) for feature in _list(item.get("features"))]
        wanted = [one for one in found if chosen is None or one.get("id") == chosen]
        if len(wanted) != 1:
            ids = ", ".join(str(one.get("id"))[:80] for one in found[:5])
            called = "" if chosen is None else f" called {chosen[:80]!r}"
            raise InputError(
                f"the collection holds {len(wanted)} items{called}, expected one scene; its items are {ids or 'none'}"
                f"{', …' if len(found) > 5 else ''}",  # noqa: PLR2004
                code="IN-052",
                title="Several items",
                where=where,
                fix="scenemask batch --list takes them all; for one of them put #ID behind the file's name",
            )
        item = wanted[0]
    if item.get("type") != "Feature" or "assets" not in item:
        raise _no_item(
            where, f"its type is {str(item.get('type'))[:40]!r} and it has {'' if 'assets' in item else 'no '}assets"
        )
    return item


def _no_item(where: str, why: str) -> InputError:
    return InputError(
        f"not a STAC item: {why}",
        code="IN-050",
        title="Not a STAC item",
        where=where,
        fix="give the item's own JSON (a Feature with assets), or a raster",
    )


def _is_raster(asset: dict[str, Any]) -> bool:
    href = _text(asset.get("href"))
    kind = str(asset.get("type") or "").lower()
    return bool(href) and (
        kind.startswith(_RASTERS) or (not kind and href.partition("?")[0].lower().endswith(_SUFFIXES))
    )


def _is_layer(key: str, asset: dict[str, Any]) -> bool:
    """Whether an asset holds no measurements for a network: classes, quality, pictures."""
    roles = {str(role).lower() for role in _list(asset.get("roles"))}
    named = any(_text(band.get("name")) for band in _bands(asset))
    return bool(roles & (_NO_MEASUREMENT | _CLASSES)) or (key.lower() in _LAYERS and not named)


def _bands(asset: dict[str, Any]) -> list[dict[str, Any]]:
    """STAC 1.1's `bands`, or `eo:bands` with `raster:bands` beside them; what holds for all comes from the asset."""
    new = [_dict(band) for band in _list(asset.get("bands"))]
    eo, raster = ([_dict(b) for b in _list(asset.get(key))] for key in ("eo:bands", "raster:bands"))
    count = max(len(new), len(eo), len(raster), 1)

    def at(bands: list[dict[str, Any]], k: int) -> dict[str, Any]:
        return bands[k] if k < len(bands) else {}

    return [{**at(raster, k), **at(eo, k), **at(new, k)} for k in range(count)]


def _offers(key: str, asset: dict[str, Any], properties: dict[str, Any], where: Path | Location) -> Iterator[Offer]:
    href = _resolved(_text(asset["href"]), where)
    bands = _bands(asset)
    for number, told in enumerate(bands, 1):

        def first(*names: str, told: dict[str, Any] = told) -> Any:
            return next((source[n] for n in names for source in (told, asset) if source.get(n) is not None), None)

        name = _text(told.get("name")) or (key if len(bands) == 1 else f"{key}-{number}")
        common = _text(first("common_name", "eo:common_name"))
        centre = _number(first("center_wavelength", "eo:center_wavelength"))
        aliases = [key] if len(bands) == 1 else []
        aliases += [
            alias for alias in (common, SENTINEL2.get(name.upper()), name_of_wavelength(centre or 0.0)) if alias
        ]
        scale, offset, truth = _scaling(first, properties)
        yield Offer(
            band=Band(
                name=name,
                index=0,
                nodata=_nodata(first("nodata")),
                scale=scale,
                offset=offset,
                color=color_of(common),
                described=True,
                aliases=tuple(aliases),
                truth=truth,
            ),
            href=href,
            number=number,
        )


def _scaling(first: Any, properties: dict[str, Any]) -> tuple[float, float, str]:
    """(scale, offset, who says so)."""
    scale, offset = _number(first("scale", "raster:scale")), _number(first("offset", "raster:offset"))
    if scale is None and offset is None:
        return 1.0, 0.0, "file"
    if offset and properties.get("earthsearch:boa_offset_applied") is True:
        return scale or 1.0, 0.0, "STAC raster:scale; offset left out: earthsearch:boa_offset_applied"
    return scale or 1.0, offset or 0.0, "STAC raster:scale, raster:offset"


def _facts(properties: dict[str, Any]) -> dict[str, Json]:
    wanted = ("platform", "constellation", "datetime", "s2:processing_baseline", "processing:version")
    return {key: properties[key] for key in wanted if isinstance(properties.get(key), str)}


def _resolved(href: str, where: Path | Location) -> str:
    """Where an asset lies; relative references begin at the item.

    Raises:
        InputError: IN-053.
    """
    if is_remote(href):
        return href
    here = href.removeprefix("file://")
    if "://" in here or here.startswith("/vsi") or any(ord(c) < ord(" ") for c in here):
        raise _refused(href, where, "it is no path and no address that can be read")
    if isinstance(where, Path):
        path = Path(unquote(here) if href.startswith("file://") else here)
        return str(path if path.is_absolute() else Path(os.path.normpath(where.parent / path)))
    if href.startswith("file:") or Path(here).is_absolute():
        raise _refused(href, where, "an item on a server may not point to files of this machine")
    if where.scheme in {"http", "https"}:
        return urljoin(f"{where.scheme}://{where.host}/{where.key}", here)
    key = os.path.normpath(f"{where.parent.key}/{here}").lstrip("/")
    if key.startswith(".."):
        raise _refused(href, where, "it leads out of the bucket")
    return f"{where.scheme}://{where.host}/{key}"


def _refused(href: str, where: Path | Location, why: str) -> InputError:
    return InputError(
        f"an asset lies at {href[:200]!r}: {why}",
        code="IN-053",
        title="Reference is not followed",
        where=str(where),
        fix="correct the item's href, or give the file itself",
    )


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _nodata(value: object) -> float | None:
    if isinstance(value, str) and value.lower() in {"nan", "inf", "-inf"}:
        return float(value)
    return _number(value)
