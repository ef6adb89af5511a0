"""Opening any input as a `Scene`, or refusing it with a reason and a way out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.access import Access
from pipeline.errors import InputError
from pipeline.location import Location, is_remote, parse_location
from pipeline.scene.files import open_raster, open_remote
from pipeline.scene.find import find_sources
from pipeline.scene.folder import CONTAINERS, is_zarr
from pipeline.scene.product import Product
from pipeline.scene.raster import RasterScene
from pipeline.scene.remote import remote_file
from pipeline.scene.validity import can_occur

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from pipeline.scene.base import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a person says about files that are opened, where these say nothing or something wrong."""

    nodata: float | None = None
    """Value of missing pixels in all bands."""
    assume_crs: str | None = None
    """CRS of a scene that has none."""
    allow_no_crs: bool = False
    """Accept a scene without CRS."""
    access: Access = field(default_factory=Access)
    """How servers are reached."""
    resampling: str = "auto"
    """Kernel of bands that have other pixels than the finest one."""
    any_grid: bool = False
    """A grid is given elsewhere, so files of one scene need not share theirs."""
    warp_gcps: bool = False
    """Take scenes that only control points or RPCs place, on a grid in the CRS of these."""
    rpc_height_m: float | None = None
    """Height of the ground above the ellipsoid, for RPCs; with a DEM what is added to its heights."""
    rpc_dem: str | None = None
    """Raster of heights of the ground, for RPCs."""
    class_numbers: bool = False
    """Take a palette image: its numbers are wanted as classes, not as measurements."""


def open_scene(
    source: str | os.PathLike[str] | xr.DataArray | Sequence[str | os.PathLike[str]],
    *,
    bands: Sequence[str | int] | None = None,
    nodata: float | None = None,
    assume_crs: str | None = None,
    allow_no_crs: bool = False,
    class_numbers: bool = False,
    access: Access | None = None,
    resampling: str = "auto",
) -> Scene:
    """Open a raster, a product of several files, or an array as a scene.

    Args:
        source: Path or address (`s3://bucket/key`, `https://host/path`) of a GeoTIFF, JPEG 2000, JPEG or PNG, or of a
            STAC item; a folder, zip or tar of Sentinel-2, Landsat or one file per band; several paths, or a folder of
            them, that lie side by side; or a DataArray `(band, y, x)` or `(y, x)`.
        bands: Bands to read, in this order: names, or 1-based numbers in the file. All but alpha by default.
        nodata: Value of missing pixels in all bands, in place of what the file declares.
        assume_crs: CRS of a scene that has none, such as `EPSG:32633`.
        allow_no_crs: Accept a scene without CRS; results are then in pixel coordinates.
        class_numbers: Accept a palette image: its numbers are wanted as classes, not as measurements.
        access: How servers are reached; AWS's own endpoint and patience by default.
        resampling: How bands with other pixels than the finest one are brought onto its grid: nearest, bilinear, cubic,
            average, or auto (average where they are finer, else bilinear).

    Raises:
        InputError: The scene cannot be used: IN-001 to IN-017, IN-040 to IN-042, see docs/errors.md.
        InfrastructureError: ST-010 to ST-013, a server refuses or fails.
        UsageError: CF-010 `assume_crs` contradicts the file, CF-011 impossible nodata, CF-012 unknown CRS, CF-050 to
            CF-054 an address that cannot be used.
    """
    opening = Opening(
        nodata=nodata,
        assume_crs=assume_crs,
        allow_no_crs=allow_no_crs,
        access=access or Access(),
        resampling=resampling,
        class_numbers=class_numbers,
    )
    found = look_at(source, opening)
    if bands is not None:
        found = found.select(bands)
    return open_product(found, opening) if isinstance(found, Product) else found


def look_at(source: Any, opening: Opening) -> Scene | Product:
    """The scene; or, where it consists of several files, what it offers, so that only those that are needed are opened.

    Raises as `open_scene`.
    """
    if isinstance(source, list | tuple) and len(source) == 1:
        return look_at(source[0], opening)
    found = find_sources(source, opening.access)
    if not isinstance(found, list):
        return open_one(source, opening) if found is None else found
    from pipeline.scene.mosaic import make_mosaic  # noqa: PLC0415 - for those who need it

    path = None if isinstance(source, list | tuple) else str(Path(source).absolute())
    scenes = [open_one(one, opening) for one in found]
    return make_mosaic(scenes, path=path, resampling=opening.resampling, any_grid=opening.any_grid)


def open_product(product: Product, opening: Opening) -> Scene:
    """Open the files of a product that its chosen bands are in; raises as `open_scene`."""

    def opener(href: str, told: float | None) -> Scene:
        scene = open_one(href, opening)
        if told is None or opening.nodata is not None or any(band.nodata is not None for band in scene.bands):
            return scene
        return open_one(href, replace(opening, nodata=told)) if can_occur(told, scene.dtype) else scene

    return product.open(opener, resampling=opening.resampling, any_grid=opening.any_grid)


def open_one(source: Any, opening: Opening) -> Scene:
    """Open one file or array; raises as `open_scene`."""
    if opening.warp_gcps and (is_remote(source) or isinstance(source, str | os.PathLike)):
        return _open_warped(source, replace(opening, warp_gcps=False))
    options: dict[str, Any] = {
        "nodata": opening.nodata,
        "assume_crs": opening.assume_crs,
        "allow_no_crs": opening.allow_no_crs,
    }
    scene: Scene
    gridded = _open_gridded(source, opening.access, options)
    if gridded is not None:
        scene = gridded
    elif is_remote(source):
        scene = open_remote(remote_file(source, opening.access), **options)
    elif isinstance(source, (str, os.PathLike)):
        scene = open_raster(os.fspath(source), **options)
    else:
        from pipeline.scene.array import scene_from_array  # noqa: PLC0415 - xarray is slow to load

        scene = scene_from_array(source, **options)
    if isinstance(scene, RasterScene) and not opening.class_numbers:
        _refuse_palette(scene)
    return scene


def _open_gridded(source: Any, access: Access, options: dict[str, Any]) -> Scene | None:
    """A Zarr group (on a server by its name, on disk by what is in it) or NetCDF-4 file; None for all else."""
    if not (is_remote(source) or isinstance(source, str | os.PathLike)):
        return None
    place = parse_location(source) if is_remote(source) else Path(source)
    is_group = _is_remote_group(place) if isinstance(place, Location) else is_zarr(place)
    if not is_group and place.suffix.lower() not in CONTAINERS:
        return None
    from pipeline.scene.gridded import open_gridded  # noqa: PLC0415 - for the few that need it

    if not is_group:
        from pipeline.scene.netcdf4 import netcdf4_at  # noqa: PLC0415

        file = netcdf4_at(source, access)
        return None if file is None else open_gridded(file, **options)
    from pipeline.scene.zarr_group import UNLISTED, ZarrWeb, zarr_store  # noqa: PLC0415

    store = zarr_store(place, access)
    warnings = (UNLISTED.format(store.name),) if isinstance(store, ZarrWeb) else ()
    return open_gridded(store, **options, warnings=warnings)


def _is_remote_group(place: Location) -> bool:
    """Whether an address is that of a Zarr group, or of one in it."""
    return place.suffix == ".zarr" or (".zarr/" in place.key and not place.suffix)


def _open_warped(source: Any, opening: Opening) -> Scene:
    """A file that its control points or RPCs place; as it is where it has a geotransform."""
    from pipeline.scene.regrid import warped_by_reference  # noqa: PLC0415 - needs more of PROJ than most scenes do

    scene = open_one(source, replace(opening, allow_no_crs=True, assume_crs=None))
    if isinstance(scene, RasterScene) and scene.geobox.transform.is_identity:
        dem = None if opening.rpc_dem is None else _checked_dem(opening.rpc_dem)
        warped = warped_by_reference(scene, height_m=opening.rpc_height_m, dem=dem, assume_crs=opening.assume_crs)
        if warped is not None:
            return warped
    return open_one(source, opening)


def _checked_dem(path: str) -> str:
    """The absolute path of what GDAL may open for heights: a raster of one band with a place on Earth."""
    dem = open_raster(path, nodata=None, assume_crs=None, allow_no_crs=False)
    if len(dem.bands) != 1:
        raise InputError(
            f"{dem.name} has {len(dem.bands)} bands, expected one of heights",
            code="IN-062",
            title="No heights",
            where=dem.path,
            fix="give a raster of heights in metres, such as a tile of the Copernicus DEM",
        )
    return dem.path


def _refuse_palette(scene: RasterScene) -> None:
    if any(band.color == "palette" for band in scene.bands):
        raise InputError(
            f"{scene.name} holds palette numbers, which are no measurements: neighbouring numbers are unrelated "
            "colours",
            code="IN-010",
            title="Palette image",
            where=scene.path,
            fix=f"gdal_translate -expand rgb '{Path(scene.member or scene.path).name}' rgb.tif",
        )
