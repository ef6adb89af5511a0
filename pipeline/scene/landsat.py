"""Landsat Collection 2 products, as folders or tar files: bands by name, reflectance by the MTL file."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, TypeAlias

from pipeline.scene.bands import LANDSAT, color_of
from pipeline.scene.base import Band
from pipeline.scene.folder import unusable
from pipeline.scene.product import Offer, Product, numbered, to_float

if TYPE_CHECKING:
    from pipeline.scene.folder import Folder

    Groups: TypeAlias = dict[str, dict[str, str]]

_LINE = re.compile(r'^\s*([A-Z0-9_]+)\s*=\s*"?([^"]*?)"?\s*$')
_SURFACE = "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"
_WARMTH = "LEVEL2_SURFACE_TEMPERATURE_PARAMETERS"
_TOP = "LEVEL1_RADIOMETRIC_RESCALING"
_PAIRS = {"coastal": "coastal", "nir": "nir08", "lwir11": "lwir11"}
"""Names that catalogues use for the same band."""


def open_landsat(folder: Folder) -> Product | None:
    """The product in a folder; None where it is none of Landsat.

    Raises:
        InputError: IN-058, its MTL file cannot be read or names no band that is there.
    """
    metadata = folder.ending("_mtl.txt")
    if not metadata:
        return None
    if len(metadata) > 1:
        raise unusable(folder.path, f"{len(metadata)} products lie in it, expected one")
    groups = _groups(folder.text(metadata[0]).decode("utf-8", "replace"))
    here = {name.rpartition("/")[2]: name for name in folder.names}
    contents = groups.get("PRODUCT_CONTENTS", {})
    image = groups.get("IMAGE_ATTRIBUTES", {})
    sensor = image.get("SPACECRAFT_ID", "")
    common = LANDSAT["8" if sensor.endswith(("8", "9")) else "7"]
    offers, layers = [], []
    for key, file in contents.items():
        band = re.fullmatch(r"FILE_NAME_BAND_(?:ST_B)?(\d+)", key)
        if band is not None and file in here:
            warm = "ST_B" in key
            offers.append(_offer(band[1], folder.href(here[file]), groups, common, warm=warm))
        elif key.startswith("FILE_NAME_QUALITY") and file in here:
            layers.append(Offer(band=_layer(file), href=folder.href(here[file])))
    if not offers:
        raise unusable(folder.path, f"{metadata[0]} names no band that lies in it")
    return Product(
        name=contents.get("LANDSAT_PRODUCT_ID") or folder.path.stem,
        path=str(folder.path),
        kind=f"Landsat {contents.get('PROCESSING_LEVEL', 'product')}",
        offers=numbered(offers),
        layers=tuple(layers),
        facts={
            "platform": sensor,
            "sensed": image.get("DATE_ACQUIRED", ""),
            "sun_elevation_deg": image.get("SUN_ELEVATION", ""),
        },
    )


def _groups(text: str) -> Groups:
    """`GROUP` -> its keys; of a key that comes twice in a group the last."""
    groups: Groups = {}
    name = ""
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        key, value = match.groups()
        if key == "GROUP":
            name = value
        elif key != "END_GROUP":
            groups.setdefault(name, {})[key] = value
    return groups


def _offer(number: str, href: str, groups: Groups, common: dict[str, str], *, warm: bool) -> Offer:
    name = common.get(number, "")
    scale, offset, truth = _scaling(number, groups, warm=warm)
    pair = _PAIRS.get(name, name)
    return Offer(
        band=Band(
            name=f"ST_B{number}" if warm else f"B{number}",
            index=0,
            nodata=0.0,
            scale=scale,
            offset=offset,
            color=color_of(name),
            described=True,
            aliases=tuple(dict.fromkeys(alias for alias in (name, pair) if alias)),
            truth=truth,
        ),
        href=href,
    )


def _scaling(number: str, groups: Groups, *, warm: bool) -> tuple[float, float, str]:
    """(scale, offset, who says so)."""
    key = f"{'TEMPERATURE' if warm else 'REFLECTANCE'}_%s_BAND_{'ST_B' if warm else ''}{number}"
    for group in (_WARMTH,) if warm else (_SURFACE, _TOP):
        scale, offset = (to_float(groups.get(group, {}).get(key % part)) for part in ("MULT", "ADD"))
        if scale is None:
            continue
        if group == _TOP:
            sine, remark = _sun(groups)
            return scale / sine, (offset or 0.0) / sine, f"MTL: {group}{remark}"
        return scale, offset or 0.0, f"MTL: {group}"
    return 1.0, 0.0, "file"


def _sun(groups: Groups) -> tuple[float, str]:
    """What level 1's constants are divided by, and how that is said.

    They give reflectance as if the sun stood in the zenith; the scene's own has the sine of its elevation in it, at the
    centre of the scene. Source: Landsat 8-9 OLI/TIRS Collection 2 Level 1 Data Format Control Book.
    """
    told = to_float(groups.get("IMAGE_ATTRIBUTES", {}).get("SUN_ELEVATION"))
    if told is None or not 0 < told <= 90:  # noqa: PLR2004 - degrees
        return 1.0, ", sun angle left as it is: no SUN_ELEVATION"
    return math.sin(math.radians(told)), f", over the sine of SUN_ELEVATION {told:g}"


def _layer(file: str) -> Band:
    stem = file.rpartition(".")[0]
    match = re.search(r"_((?:SR_|ST_)?QA(?:_[A-Z]+)?)$", stem)
    return Band(name=match[1] if match else stem, index=0, nodata=None, described=True)
