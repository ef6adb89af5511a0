"""Raster files as scenes, on disk, packed in an archive or on a server: looked at, and refused with a way out."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from rasterio.enums import ColorInterp, Interleaving, MaskFlags

from pipeline.errors import InputError, PipelineError, UsageError
from pipeline.grid import GeoBox
from pipeline.scene.base import Band
from pipeline.scene.crs import check_transform, choose_crs
from pipeline.scene.datasets import GDAL_ERRORS, gdal_options, open_dataset
from pipeline.scene.folder import CONTAINERS, gdal_path, read_member, split_member
from pipeline.scene.magic import (
    HEAD_BYTES,
    SIDECARS,
    check_overview_file,
    check_sidecars,
    driver_of,
    is_complete,
    read_ends,
)
from pipeline.scene.raster import IGNORED, REOPENINGS, RasterScene, cannot_read, digest_ends, not_found
from pipeline.scene.remote import RangeReader, RemoteFile
from pipeline.scene.tiff import read_tiff_layout
from pipeline.scene.validity import can_occur
from pipeline.scene.warn import collar_warning, sparse_warning

if TYPE_CHECKING:
    from pipeline.location import Location
    from pipeline.scene.tiff import TiffLayout

MAX_PIXELS = 2**40
"""Pixels of one band; a billion screens, and more is a mistake or an attack."""
MAX_BANDS = 4096
"""Bands of a file."""
MAX_BLOCK_BYTES = 512 * 10**6
"""Bytes of one decoded block of one band: GDAL must hold it whole."""
_MAX_LOOKED_AT = 16  # bands that the look for a collar reads


def open_raster(source: str, *, nodata: float | None, assume_crs: str | None, allow_no_crs: bool) -> RasterScene:
    """A file on disk, or in an archive; see `open_scene` for arguments and errors."""
    member = split_member(source)
    if member is not None:
        return _open_member(*member, nodata=nodata, assume_crs=assume_crs, allow_no_crs=allow_no_crs)
    path = Path(source).absolute()
    head, tail, status = _read_ends(source, path)
    driver = driver_of(head, path)
    check_sidecars(path)
    with path.open("rb") as file:
        layout = _check_complete(file, path, driver, head=head, tail=tail, size=status.st_size)
    try:
        with open_dataset(str(path), driver) as dataset:
            scene = _inspect(dataset, path, driver, nodata=nodata, assume_crs=assume_crs, allow_no_crs=allow_no_crs)
            scene = replace(scene, size=status.st_size, mtime_ns=status.st_mtime_ns, digest=digest_ends(head, tail))
            return replace(scene, warnings=tuple(_warnings(dataset, scene, layout)))
    except GDAL_ERRORS as error:
        raise cannot_read(str(path), f"{path.name} cannot be opened", error) from error


def _open_member(
    archive: Path, name: str, *, nodata: float | None, assume_crs: str | None, allow_no_crs: bool
) -> RasterScene:
    """A raster that stays packed; the archive is the file that must not change."""
    archive = archive.absolute()
    head, tail, status = _read_ends(str(archive), archive)
    try:
        within = gdal_path(archive, name)
        packed = archive.suffix.lower() not in CONTAINERS
        driver = driver_of(read_member(archive, name, HEAD_BYTES), Path(name)) if packed else "netCDF"
        if packed:
            _check_packed_sidecars(archive, name)
        with open_dataset(within, driver) as dataset:
            scene = _inspect(
                dataset, Path(name), driver, nodata=nodata, assume_crs=assume_crs, allow_no_crs=allow_no_crs
            )
            if driver == "netCDF" and scene.geobox.transform.is_identity and not allow_no_crs:
                # GDAL then knows no north either, and may have turned the rows around.
                choose_crs(None, assume_crs=None, allow_no_crs=False, where=f"{archive}, {name}")
            scene = replace(scene, path=str(archive), member=name, within=within, digest=digest_ends(head, tail))
            scene = replace(scene, size=status.st_size, mtime_ns=status.st_mtime_ns)
            return replace(scene, warnings=tuple(_warnings(dataset, scene, None)))
    except (*GDAL_ERRORS, OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
        if isinstance(error, PipelineError):
            raise
        raise cannot_read(f"{archive}, {name}", f"{Path(name).name} cannot be opened", error) from error


def _check_packed_sidecars(archive: Path, name: str) -> None:
    """As `check_sidecars`, for what lies beside it in its archive."""
    for suffix in SIDECARS:
        try:
            head = read_member(archive, name + suffix, 64)
        except OSError:
            continue  # it is not there
        driver_of(head, Path(name + suffix))


def open_remote(file: RemoteFile, *, nodata: float | None, assume_crs: str | None, allow_no_crs: bool) -> RasterScene:
    """A file on a server; see `open_scene` for arguments and errors."""
    head, tail, facts = file.ends(HEAD_BYTES)
    if not head:
        raise _empty(file.location)
    driver = driver_of(head, file.location)
    reader = io.BufferedReader(RangeReader(file, facts.size), buffer_size=HEAD_BYTES)
    layout = _check_complete(reader, file.location, driver, head=head, tail=tail, size=facts.size)
    for left in range(REOPENINGS, -1, -1):
        try:
            scene = _look(
                file,
                driver,
                layout,
                version=facts.etag,
                nodata=nodata,
                assume_crs=assume_crs,
                allow_no_crs=allow_no_crs,
            )
            digest = digest_ends(head, tail)
            return replace(scene, digest=digest, size=facts.size, mtime_ns=facts.mtime_ns, etag=facts.etag)
        except GDAL_ERRORS as error:
            file.distrust()
            file.facts()  # where the server is in trouble, it says so
            if not left:
                raise cannot_read(str(file), f"{file.location.name} cannot be opened", error) from error
    raise AssertionError


def _look(
    file: RemoteFile,
    driver: str,
    layout: TiffLayout | None,
    *,
    version: str,
    nodata: float | None,
    assume_crs: str | None,
    allow_no_crs: bool,
) -> RasterScene:
    place = file.location
    with file.open(driver, version=version) as dataset, gdal_options(file.gdal_options()):
        scene = _inspect(dataset, place, driver, nodata=nodata, assume_crs=assume_crs, allow_no_crs=allow_no_crs)
        return replace(scene, remote=file, warnings=tuple(_warnings(dataset, scene, layout)))


def _inspect(
    dataset: Any,
    path: Path | Location,
    driver: str,
    *,
    nodata: float | None,
    assume_crs: str | None,
    allow_no_crs: bool,
) -> RasterScene:
    """Everything but the identity of the file and the warnings."""
    check_overview_file(dataset, path)
    _check_limits(dataset, path)
    _check_pixels(dataset, path)
    _check_georeference(dataset, path, allow_no_crs=allow_no_crs)
    bands, alpha = _describe_bands(dataset, path, nodata=nodata)
    crs_wkt = choose_crs(dataset.crs, assume_crs=assume_crs, allow_no_crs=allow_no_crs, where=str(path))
    return RasterScene(
        path=str(path),
        driver=driver,
        geobox=GeoBox(shape=dataset.shape, transform=dataset.transform, crs_wkt=crs_wkt),
        bands=bands,
        all_bands=bands,
        alpha=alpha,
        mask=_mask_kind(dataset, overridden=nodata is not None),
        dtypes=tuple(dataset.dtypes[b.index - 1] for b in bands),
        block_hw=dataset.block_shapes[0],
        bands_together=dataset.interleaving == Interleaving.pixel,
        nodata_override=nodata,
        assumed_crs=assume_crs,
    )


def _read_ends(source: str, path: Path) -> tuple[bytes, bytes, os.stat_result]:
    if source.startswith("/vsi"):
        raise not_found(source)  # GDAL's virtual file systems reach further than a path on disk may
    if os.path.isdir(path):  # noqa: PTH112 - False, not an error, for names that are too long
        raise InputError(
            f"{source} is a folder, not a raster file",
            code="IN-002",
            title="Not a raster",
            where=source,
            fix="give one file in it; for several scenes run the command once for each",
        )
    try:
        head, tail, status = read_ends(path)
    except FileNotFoundError as error:
        raise not_found(source) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise cannot_read(source, f"{source} cannot be read", error) from error
    if not head:
        raise _empty(path)
    return head, tail, status


def _empty(path: Path | Location) -> InputError:
    return InputError(
        f"{path.name} has 0 bytes",
        code="IN-003",
        title="Empty file",
        where=str(path),
        fix="download or write it again; its writer was probably interrupted or the disk was full",
    )


def _check_complete(
    file: BinaryIO, path: Path | Location, driver: str, *, head: bytes, tail: bytes, size: int
) -> TiffLayout | None:
    """Find a cut file before it fails hours into a run; for TIFF, return where its blocks are."""
    layout = read_tiff_layout(file) if driver == "GTiff" else None
    if layout is not None and layout.needed_bytes > size:
        detail = f"{layout.missing} ends at byte {layout.needed_bytes}, the file at byte {size}"
    elif not is_complete(driver, head=head, tail=tail, size=size):
        detail = f"its end is missing, the file stops at byte {size}"
    else:
        return layout
    raise InputError(
        f"{path.name} is cut short: {detail}",
        code="IN-004",
        title="Truncated file",
        where=str(path),
        fix="copy or download it again, and compare sizes or checksums",
    )


def _check_limits(dataset: Any, path: Path | Location) -> None:
    itemsize = max(np.dtype(_numpy_name(d)).itemsize for d in dataset.dtypes)
    refuse_size(path, dataset.shape, dataset.count, max(h * w for h, w in dataset.block_shapes) * itemsize)


def refuse_size(path: object, shape: tuple[int, int], count: int, block_bytes: int) -> None:
    """Refuse what no scene has, before anything of that size is allocated.

    Args:
        path: With a `name`.
        shape: Rows and columns.
        count: Bands.
        block_bytes: Of the largest decoded block or chunk.

    Raises:
        InputError: IN-013.
    """
    height, width = shape
    reasons = (
        (height * width > MAX_PIXELS, f"{height} x {width} pixels, at most 2**40 in all"),
        (count > MAX_BANDS, f"{count} bands, at most {MAX_BANDS}"),
        (block_bytes > MAX_BLOCK_BYTES, f"blocks of {block_bytes / 1e6:.0f} MB, at most {MAX_BLOCK_BYTES // 10**6} MB"),
    )
    for too_large, what in reasons:
        if too_large:
            raise InputError(
                f"{getattr(path, 'name', path)} has {what}",
                code="IN-013",
                title="Scene too large",
                where=str(path),
                fix="cut it, or write it with smaller blocks: gdal_translate -of COG",
            )


def _check_pixels(dataset: Any, path: Path | Location) -> None:
    if any(name.startswith("complex") for name in dataset.dtypes):
        raise InputError(
            f"{path.name} holds complex numbers ({dataset.dtypes[0]}); networks take real ones",
            code="IN-009",
            title="Complex pixels",
            where=str(path),
            fix="write amplitudes first, for example with gdal_calc --calc 'abs(A)'",
        )


def _is_bitmap(dataset: Any, number: int) -> bool:
    """GDAL invents a palette of black and white for one-bit bands; their 0 and 1 are values like any other."""
    return bool(dataset.tags(number, ns="IMAGE_STRUCTURE").get("NBITS") == "1")


def _check_georeference(dataset: Any, path: Path | Location, *, allow_no_crs: bool) -> None:
    """Refuse scenes whose place on Earth needs warping: taken as they are, they would land at (0, 0)."""
    check_transform(dataset.transform, where=str(path))
    if allow_no_crs or not dataset.transform.is_identity:
        return
    gcps, _ = dataset.gcps
    if gcps:
        raise InputError(
            f"{path.name} is placed by {len(gcps)} ground control points only, not by a geotransform",
            code="IN-007",
            title="Ground control points only",
            where=str(path),
            fix="--warp-gcps moves pixels to where they belong while they are read (--assume-crs does not help)",
        )
    if dataset.rpcs is not None and not dataset.crs:
        raise InputError(
            f"{path.name} is placed by rational polynomial coefficients only, not by a geotransform",
            code="IN-008",
            title="Rational polynomial coefficients only",
            where=str(path),
            fix="--warp-gcps --rpc-height METRES; in hilly country --rpc-dem FILE",
        )


def _describe_bands(
    dataset: Any, path: Path | Location, *, nodata: float | None
) -> tuple[tuple[Band, ...], tuple[int, ...]]:
    """The bands without alpha, and the numbers of the alpha bands."""
    bands, alpha = [], []
    for i in range(dataset.count):
        if dataset.colorinterp[i] == ColorInterp.alpha:
            alpha.append(i + 1)
            continue
        if nodata is not None and not can_occur(nodata, np.dtype(dataset.dtypes[i])):
            raise impossible_nodata(nodata, dataset.dtypes[i], path)
        bands.append(_band(dataset, i, nodata=nodata))
    if not bands:
        raise InputError(
            f"{path.name} has nothing but an alpha band",
            code="IN-002",
            title="Not a raster",
            where=str(path),
            fix="give a raster with at least one band of data",
        )
    return tuple(bands), tuple(alpha)


def _band(dataset: Any, i: int, *, nodata: float | None) -> Band:
    description = (dataset.descriptions[i] or "").strip()
    own = dataset.nodatavals[i]
    return Band(
        name=description or str(i + 1),
        index=i + 1,
        nodata=float(nodata) if nodata is not None else None if own is None else float(own),
        scale=float(dataset.scales[i]),
        offset=float(dataset.offsets[i]),
        color="gray" if _is_bitmap(dataset, i + 1) else dataset.colorinterp[i].name,
        described=bool(description),
    )


def impossible_nodata(nodata: float, dtype: str, where: object) -> UsageError:
    """The CF-011 error for a value that no pixel can have."""
    return UsageError(
        f"--nodata {nodata:g} cannot occur in {dtype} pixels",
        code="CF-011",
        title="Impossible nodata",
        where=str(where),
        fix="give the value that missing pixels hold in the file; `scenemask inspect` shows the type",
    )


def _mask_kind(dataset: Any, *, overridden: bool) -> str:
    """Whether GDAL has masks besides nodata values and alpha bands, which we evaluate ourselves.

    Flags: none at all = one mask per band; per_dataset = a mask for all bands, which is just the alpha band when alpha
    is set too, and the rule "nodata in all bands at once" (NODATA_VALUES) when nodata is set too.
    """
    kind = "none"
    for flags in dataset.mask_flag_enums:
        if not flags:
            return "band"
        derived = MaskFlags.alpha in flags or (MaskFlags.nodata in flags and overridden)
        if MaskFlags.per_dataset in flags and not derived:
            kind = "dataset"
    return kind


def _warnings(dataset: Any, scene: RasterScene, layout: TiffLayout | None) -> list[str]:
    found: list[str | None] = []
    declared = any(b.nodata is not None for b in scene.bands)
    found.append(sparse_warning(layout, declared=declared))
    blank = layout is not None and layout.is_blank
    if not declared and not blank and not scene.alpha and scene.mask == "none":
        found.append(collar_warning(dataset, [b.index for b in scene.bands[:_MAX_LOOKED_AT]]))
    if layout is not None and layout.num_images > 1:
        found.append(f"the file holds {layout.num_images} images; only the first is used (gdalinfo lists the others).")
    for band, dtype in zip(scene.bands, scene.dtypes, strict=True):
        if band.nodata is not None and not can_occur(band.nodata, np.dtype(dtype)):
            found.append(
                f"nodata {band.nodata:g} of band {band.name} cannot occur in {dtype} pixels and masks nothing."
            )
            break
    if dataset.transform.is_identity:
        found.append(_identity_warning(dataset, scene))
    return [sentence for sentence in found if sentence]


def _identity_warning(dataset: Any, scene: RasterScene) -> str | None:
    if dataset.gcps[0] or (dataset.rpcs is not None and not dataset.crs):
        return IGNORED
    if scene.geobox.crs_wkt is None:
        return None  # --allow-no-crs said so
    return (
        "the scene has a CRS but no geotransform: pixel (0, 0) is taken to lie at the CRS's origin, 1 unit per pixel."
    )


def _numpy_name(dtype: str) -> str:
    """GDAL's complex integers have no NumPy type; they are refused a moment later."""
    return "complex64" if dtype == "complex_int16" else dtype
