"""Which GDAL driver may open a file, by its first bytes and never by its name; knows no GDAL itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.location import Location

HEAD_BYTES = 64 * 1024
"""Bytes of the start and of the end of a file that we look at."""

_DRIVERS = (
    (b"II*\x00", "GTiff"),
    (b"MM\x00*", "GTiff"),
    (b"II+\x00", "GTiff"),
    (b"MM\x00+", "GTiff"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
)
# Rasters that GDAL could open but we do not: a virtual file may point anywhere on the disk or the network, containers
# hold many rasters, and the rest has no tests here.
_OTHERS = (
    (b"\x89HDF", "HDF5 or netCDF-4"),
    (b"CDF", "netCDF"),
    (b"\x0e\x03\x13\x01", "HDF4"),
    (b"PK\x03\x04", "a zip archive"),
    (b"GRIB", "GRIB"),
    (b"NITF", "NITF"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"EHFA_HEADER_TAG", "Erdas Imagine"),
    (b"SQLite format 3", "GeoPackage or SQLite"),
    (b"\x1f\x8b", "gzip"),
    (b"BM", "BMP"),
)
SUPPORTED = "GeoTIFF, JPEG 2000, JPEG and PNG"


def driver_of(head: bytes, path: Path | Location) -> str:
    """The one GDAL driver that may open a file starting with `head`.

    Raises:
        InputError: IN-014 for a raster format that is not supported (virtual files above all), IN-002 for no raster.
    """
    for magic, driver in _DRIVERS:
        if head.startswith(magic):
            return driver
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"<VRTDataset", b"<OGRVRT", b"<GDALTileIndexDataset", b"<GDAL_WMS")):
        raise InputError(
            f"{path.name} is a GDAL virtual file; it could point to any file or server, so it is not followed",
            code="IN-014",
            title="Unsupported raster format",
            where=str(path),
            fix=f"gdal_translate -of GTiff '{path.name}' scene.tif",
        )
    for magic, kind in _OTHERS:
        if head.startswith(magic):
            raise InputError(
                f"{path.name} is {kind}; supported are {SUPPORTED}",
                code="IN-014",
                title="Unsupported raster format",
                where=str(path),
                fix=f"gdalinfo '{path.name}' lists what it holds; gdal_translate -of GTiff <one of them> scene.tif",
            )
    raise InputError(
        f"{path.name} is not a raster: it starts with {_shown(head)}; supported are {SUPPORTED}",
        code="IN-002",
        title="Not a raster",
        where=str(path),
        fix=_html_hint(text) or "check the file, or convert it with gdal_translate",
    )


SIDECARS = (".msk", ".ovr", ".OVR", ".msk.ovr", ".msk.OVR")
"""What GDAL puts behind the name of a scene to find its mask and overviews."""


def check_sidecars(path: Path) -> None:
    """Refuse masks and overviews beside a scene that are not plain rasters: GDAL opens them with any driver.

    Raises:
        InputError: IN-014 or IN-002 for such a file.
    """
    for suffix in SIDECARS:
        sidecar = path.with_name(path.name + suffix)
        if os.path.isfile(sidecar):  # noqa: PTH113 - False, not an error, where the name with the suffix is too long
            with sidecar.open("rb") as file:
                driver_of(file.read(64), sidecar)


def check_overview_file(dataset: Any, path: Path | Location) -> None:
    """Refuse a scene that names the file of its overviews, in its tags or in `.aux.xml`: GDAL opens it with any driver.

    Args:
        dataset: Open, its overviews not yet asked for.
        path: Of the scene.

    Raises:
        InputError: IN-014.
    """
    named = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")
    if named is not None:
        raise InputError(
            f"{path.name} says that its overviews lie in {named!r}; that could be any file or server, so it is not "
            "followed",
            code="IN-014",
            title="Unsupported raster format",
            where=str(path),
            fix=f"remove {path.name}.aux.xml if that says so, else write the scene anew with gdal_translate -of COG",
        )


def is_complete(driver: str, *, head: bytes, tail: bytes, size: int) -> bool:
    """Whether the end of a JPEG, PNG or JPEG 2000 file is there (TIFF: see `tiff.py`)."""
    if driver == "JPEG":
        return b"\xff\xd9" in tail
    if driver == "PNG":
        return b"IEND" in tail
    if driver == "JP2OpenJPEG" and head.startswith(b"\x00\x00\x00\x0c"):
        return _boxes_fit(head, size)
    return True


def _boxes_fit(head: bytes, size: int) -> bool:
    """Walk the top-level boxes of a JP2 file as far as `head` shows them; False when one reaches past the end."""
    offset = 0
    while offset + 8 <= len(head):
        length, kind = int.from_bytes(head[offset : offset + 4], "big"), head[offset + 4 : offset + 8]
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(head[offset + 8 : offset + 16], "big")
        if offset + length > size:
            return False
        if kind == b"jp2c" or length < 8:  # noqa: PLR2004 - the code stream, or a box until the end of the file
            return True
        offset += length
    return offset < size


def _shown(head: bytes) -> str:
    start = head[:24]
    printable = bytes(b for b in start if 32 <= b < 127)  # noqa: PLR2004 - ASCII
    if len(printable) >= len(start.strip()) > 0:
        return repr(printable.decode("ascii"))
    return "bytes " + start[:8].hex(" ")


def _html_hint(text: bytes) -> str:
    if text[:15].lower().startswith((b"<html", b"<!doctype html")):
        return "this is a web page, often an error or login page: download the scene again"
    if text[:64].lower().startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer: run `git lfs pull`"
    return ""


def read_ends(path: Path) -> tuple[bytes, bytes, os.stat_result]:
    """First and last `HEAD_BYTES` of a file, and its stat."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        head = file.read(HEAD_BYTES)
        file.seek(max(status.st_size - HEAD_BYTES, 0))
        return head, file.read(HEAD_BYTES), status
