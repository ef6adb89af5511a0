"""Sentinel-2 products (SAFE, level 1C and 2A), as folders or zips: bands by name, reflectance by their metadata."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pipeline.scene.bands import SENTINEL2, color_of
from pipeline.scene.base import Band
from pipeline.scene.folder import unusable
from pipeline.scene.product import Offer, Product, numbered, to_float

if TYPE_CHECKING:
    from pipeline.scene.base import Json
    from pipeline.scene.folder import Folder

_METADATA = re.compile(r"(?:^|/)MTD_MSIL(1C|2A)\.xml$")
_IMAGE = re.compile(r"(?:^|/)GRANULE/([^/]+)/IMG_DATA/(?:R(\d0)m/)?[^/]*_(B\d[0-9A]|SCL|AOT|WVP)(?:_\d0m)?\.jp2$")
_IDS = {str(k): name for k, name in enumerate(SENTINEL2)}


def open_safe(folder: Folder) -> Product | None:
    """The product in a folder; None where it is none of Sentinel-2.

    Raises:
        InputError: IN-058, metadata cannot be read, or several granules lie in it.
    """
    metadata = [name for name in folder.names if _METADATA.search(name)]
    if not metadata:
        return None
    if len(metadata) > 1:
        raise unusable(folder.path, f"{len(metadata)} products lie in it, expected one")
    try:
        root = ET.fromstring(folder.text(metadata[0]))  # noqa: S314 - expat limits entities since 2.4.1
    except (ET.ParseError, ValueError, LookupError) as error:
        raise unusable(folder.path, f"{metadata[0]} is no XML: {error}") from error
    files = _files(folder)
    scale, offsets, truth = _scaling(root)
    offers: list[Offer] = []
    layers: list[Offer] = []
    for name, path in files.items():
        common = SENTINEL2.get(name)
        band = Band(
            name=name,
            index=0,
            nodata=_nodata(root),
            scale=scale if common else 1.0,
            offset=offsets.get(name, 0.0) * scale if common else 0.0,
            color=color_of(common),
            described=True,
            aliases=(common,) if common else (),
            truth=truth if common else "file",
        )
        (offers if common else layers).append(Offer(band=band, href=folder.href(path)))
    if not offers:
        raise unusable(folder.path, "it holds no image under GRANULE/*/IMG_DATA")
    return Product(
        name=_text(root, "PRODUCT_URI").removesuffix(".SAFE") or folder.path.stem,
        path=str(folder.path),
        kind=f"Sentinel-2 {_text(root, 'PROCESSING_LEVEL') or 'product'}",
        offers=numbered(offers),
        layers=tuple(layers),
        facts=_facts(root),
    )


def _files(folder: Folder) -> dict[str, str]:
    """Band or layer -> its file of the finest resolution."""
    found: dict[str, tuple[int, str]] = {}
    granules = set()
    for path in folder.names:
        match = _IMAGE.search(path)
        if match:
            granule, metres, name = match[1], int(match[2] or 10), match[3]
            granules.add(granule)
            if name not in found or metres < found[name][0]:
                found[name] = metres, path
    if len(granules) > 1:
        raise unusable(folder.path, f"it holds {len(granules)} granules; give the folder of one product of one tile")
    order = {name: k for k, name in enumerate(SENTINEL2)}
    return {name: found[name][1] for name in sorted(found, key=lambda name: (order.get(name, 99), name))}


def _scaling(root: ET.Element) -> tuple[float, dict[str, float], str]:
    """(scale, band -> stored offset, who says so): reflectance = (stored + offset) x scale."""
    quantity = _number(root, "BOA_QUANTIFICATION_VALUE") or _number(root, "QUANTIFICATION_VALUE")
    if not quantity:
        return 1.0, {}, "file"
    offsets = {}
    for tag in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"):
        for one in root.iter(tag):
            name = _IDS.get(one.get("band_id", ""))
            value = to_float(one.text)
            if name is not None and value is not None:
                offsets[name] = value
    told = "QUANTIFICATION_VALUE" + (", ADD_OFFSET" if offsets else "")
    return 1.0 / quantity, offsets, f"MTD_MSI: {told}"


def _nodata(root: ET.Element) -> float | None:
    for special in root.iter("Special_Values"):
        if (special.findtext("SPECIAL_VALUE_TEXT") or "").strip().upper() == "NODATA":
            return to_float(special.findtext("SPECIAL_VALUE_INDEX"))
    return 0.0


def _facts(root: ET.Element) -> dict[str, Json]:
    wanted = {"baseline": "PROCESSING_BASELINE", "sensed": "PRODUCT_START_TIME", "platform": "SPACECRAFT_NAME"}
    return {key: text for key, tag in wanted.items() if (text := _text(root, tag))}


def _text(root: ET.Element, tag: str) -> str:
    found = next(root.iter(tag), None)
    return "" if found is None or found.text is None else found.text.strip()


def _number(root: ET.Element, tag: str) -> float | None:
    return to_float(_text(root, tag))
