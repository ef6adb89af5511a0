"""The CRS of a scene: from its file or from the user, never guessed, as WKT2 text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import InputError, UsageError

if TYPE_CHECKING:
    from affine import Affine


def wkt_of(crs: CRS) -> str:
    """WKT2:2019, which loses no axis, datum ensemble or vertical part; WKT1 for a CRS that has no WKT2."""
    try:
        return str(crs.to_wkt(version="WKT2_2019"))
    except CRSError:
        return str(crs.to_wkt())


def parse_crs(text: str, *, option: str = "--assume-crs") -> CRS:
    """The CRS that a user wrote with an option: `EPSG:32633`, WKT, PROJ string, ….

    Raises:
        UsageError: CF-012, not understood.
    """
    try:
        return CRS.from_user_input(text)
    except (CRSError, ValueError) as error:  # ValueError: rasterio on "EPSG:abc"
        raise UsageError(
            f"{text!r} is not a CRS that PROJ knows",
            code="CF-012",
            title="Unknown CRS",
            where=option,
            fix="give an authority code such as EPSG:32633, or WKT",
        ) from error


def choose_crs(found: Any, *, assume_crs: str | None, allow_no_crs: bool, where: str) -> str | None:
    """WKT of a scene's CRS: the file's own; else the assumed one; else None where that is allowed.

    Args:
        found: The file's rasterio CRS, None when it has none.
        assume_crs: CRS for a scene that has none.
        allow_no_crs: A scene may stay without CRS.
        where: File, for messages.

    Raises:
        UsageError: CF-010, `assume_crs` contradicts the file; CF-012, it is not understood.
        InputError: IN-006, no CRS.
    """
    assumed = None if assume_crs is None else parse_crs(assume_crs)
    if found:
        if assumed is not None and not same_crs(found, assumed):
            raise UsageError(
                f"--assume-crs {assume_crs} contradicts the scene's own CRS, {crs_label(found)}",
                code="CF-010",
                title="CRS conflict",
                where=where,
                fix="leave --assume-crs away; if the file is wrong, correct it with gdal_edit -a_srs",
            )
        return wkt_of(found)
    if assumed is not None:
        return wkt_of(assumed)
    if allow_no_crs:
        return None
    raise InputError(
        "the scene has no coordinate reference system, so its polygons would lie nowhere on Earth",
        code="IN-006",
        title="No coordinate reference system",
        where=where,
        fix="--assume-crs EPSG:xxxx if you know it, or --allow-no-crs for results in pixel coordinates",
    )


def crs_label(crs: CRS) -> str:
    """Short name of a CRS for messages: `EPSG:32633` or the name in its WKT."""
    authority = crs.to_authority()
    if authority:
        return ":".join(authority)
    parts = crs.to_wkt().split('"')
    return parts[1] if len(parts) > 1 else "unnamed CRS"


def check_transform(transform: Affine, *, where: str) -> None:
    """Refuse a transform that maps all pixels onto a line or nowhere.

    Raises:
        InputError: IN-016.
    """
    usable = all(math.isfinite(v) for v in transform[:6]) and transform.determinant != 0
    if not usable or not all(math.isfinite(v) for v in (~transform)[:6]):
        raise InputError(
            f"the geotransform {tuple(transform[:6])} gives pixels no area",
            code="IN-016",
            title="Unusable georeference",
            where=where,
            fix="correct the file with gdal_edit -a_ullr or -a_gt",
        )


def same_crs(one: CRS, other: CRS) -> bool:
    """Whether two are equal up to the order of axes, which a raster's geotransform does not follow."""
    if one == other:
        return True
    import pyproj  # noqa: PLC0415 - slow to load and seldom needed
    import pyproj.exceptions  # noqa: PLC0415

    try:
        pair = pyproj.CRS.from_user_input(one.to_wkt()), pyproj.CRS.from_user_input(other.to_wkt())
    except pyproj.exceptions.CRSError:  # local and engineering CRS that PROJ has no object for
        return False
    return bool(pair[0].equals(pair[1], ignore_axis_order=True))


def same_wkt(one: str | None, other: str | None) -> bool:
    """`same_crs` of two texts; no CRS is like no CRS."""
    return one == other or (one is not None and other is not None and same_crs(CRS.from_wkt(one), CRS.from_wkt(other)))
