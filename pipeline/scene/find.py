"""Which sources are more than one raster file: items, folders, archives, several paths; all else is opened as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.location import is_remote, parse_location
from pipeline.scene.folder import is_archive, is_compressed_tar, is_zarr, list_folder, unusable
from pipeline.scene.landsat import open_landsat
from pipeline.scene.netcdf import is_netcdf, open_netcdf
from pipeline.scene.perband import open_bands, rasters_of
from pipeline.scene.safe import open_safe
from pipeline.scene.stac import is_item, open_item

if TYPE_CHECKING:
    from pipeline.access import Access
    from pipeline.location import Location
    from pipeline.scene.product import Product

_READERS = (open_safe, open_landsat, open_bands)
"""Asked in turn what a folder means."""


def find_sources(source: Any, access: Access) -> Product | list[Any] | None:
    """What a source consists of: bands in files, or files side by side; None where it is one raster or array.

    Raises as `open_scene`.
    """
    if isinstance(source, list | tuple):
        return list(source) or None
    if not (is_remote(source) or isinstance(source, str | os.PathLike)):
        return None
    if is_item(source):
        return open_item(source, access)
    if is_remote(source):
        _refuse_remote_archive(parse_location(source))
        return None
    if os.fspath(source).startswith("/vsi"):
        return None  # refused where files are opened
    return _on_disk(Path(source))


def _refuse_remote_archive(place: Location) -> None:
    if is_archive(Path(place.name)) or is_compressed_tar(Path(place.name)):
        raise unusable(
            place,
            "archives are read from disks only",
            "download it; or give the address of its STAC item, or of its files",
        )


def _on_disk(path: Path) -> Product | list[Any] | None:
    if is_netcdf(path):
        return open_netcdf(path)
    if is_compressed_tar(path) and os.path.isfile(path):  # noqa: PTH113
        raise unusable(
            path,
            "it is compressed as a whole, so no window can be read without all that lies before it",
            f"unpack it: mkdir product && tar -xf '{path}' -C product; folders, .tar and .zip are read as they are",
        )
    # os.path: False, not an error, for names that no file can have
    is_folder = os.path.isdir(path) and not is_zarr(path)  # noqa: PTH112
    if is_folder or (is_archive(path) and os.path.isfile(path)):  # noqa: PTH113
        return _in_folder(path)
    return None


def _in_folder(path: Path) -> Product | list[Any]:
    folder = list_folder(path)
    for reader in _READERS:
        product = reader(folder)
        if product is not None:
            return product
    names = rasters_of(folder)
    if not names:
        raise InputError(
            f"{path.name} holds no GeoTIFF, no JPEG 2000 and no product of Sentinel-2 or Landsat",
            code="IN-054",
            title="No bands found",
            where=str(path),
            fix="give a raster, or the folder that has one in it",
        )
    return [folder.href(name) for name in names]
