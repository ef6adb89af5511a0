"""The finished mask and probabilities: Cloud Optimized GeoTIFFs, compared with the ledger before anyone sees them.

Way of a pixel: scratch store -> temporary tiled GeoTIFF and overviews -> GDAL's COG driver -> reopened, hashed tile by
tile, overview by overview -> fsync. The file holds no time and no path: equal runs give equal bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import warnings
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # rasterio.shutil lets these through; they have no public name
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pipeline.errors import OutputError, ResourceError
from pipeline.store.ahead import in_order, num_threads
from pipeline.store.damage import DamagedTilesError, list_windows
from pipeline.store.digest import sha256_array
from pipeline.store.files import disk_full, free_bytes, fsync_path
from pipeline.store.probabilities import PROBABILITY_NODATA, PROBABILITY_STEPS
from pipeline.store.pyramid import (
    block_side,
    halve_mask,
    halve_mean,
    hash_level,
    pixel_nbytes,
    to_rasterio,
    write_levels,
    write_vrt,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox, Window
    from pipeline.legend import Legend
    from pipeline.store.pyramid import Level, Pixels

_COMPRESSION = {"compress": "DEFLATE", "level": 5}
"""A third of the time that GDAL's own level 6 takes, for files that are 4 to 8 % larger (8192², noisy and smooth)."""

P = ParamSpec("P")
T = TypeVar("T")

LEGEND_TAG = "SCENEMASK_LEGEND"
"""TIFF tag with names, colours and background as JSON: the `.aux.xml` beside the file gets lost when it is moved."""
MULTILABEL_TAG = "SCENEMASK_MULTILABEL"
"""TIFF tag, YES where classes overlap and each has a band of its own."""


def write_mask_cog(
    path: Path,
    *,
    read: Callable[[Window], NDArray[np.generic]],
    tiles: Sequence[Window],
    digests: Mapping[int, str | None],
    geobox: GeoBox,
    legend: Legend,
    tags: Mapping[str, str] | None = None,
    cache_mb: int = 64,
    between_steps: Callable[[], object] = lambda: None,
) -> None:
    """Write the mask and prove that it is what the ledger says.

    Args:
        path: Where to write; lies in a staging directory, temporary files beside it.
        read: Window -> mask `(y, x)`, or `(class, y, x)` where classes overlap, any window inside the scene; called row
            band by row band.
        tiles: Cores in the order of their indices.
        digests: Index of a tile -> SHA-256 of its mask; None where the tile is empty: all nodata. One for each tile.
        geobox: Of the scene; rotation, shear and south-up are kept.
        legend: Classes; gives dtype, nodata, and for uint8 the colour table. Where they overlap, each is a band.
        tags: TIFF tags. Nothing that differs between equal runs, or their bytes will.
        cache_mb: GDAL's block cache while writing.
        between_steps: Called many times on the way; may raise to stop it. Nothing is left then.

    Raises:
        DamagedTilesError: ST-001 from `read`; ST-002, pixels in the file are not the recorded ones. Nothing is left.
        ResourceError: RS-001, the disk filled up. Nothing is left.
        OutputError: OU-005, it cannot be written for another reason. Nothing is left.
    """
    profile = _profile(geobox, count=legend.num_mask_bands, dtype=legend.dtype, nodata=legend.nodata)
    if legend.multilabel:
        profile["photometric"] = "minisblack"

    def describe(out: Any) -> None:
        out.update_tags(**(tags or {}), **{LEGEND_TAG: legend_json(legend)})
        if legend.multilabel:
            out.update_tags(**{MULTILABEL_TAG: "YES"})
            _name_bands(out, legend)
            return
        out.set_band_description(1, "class")
        if legend.dtype == "uint8":
            table = {c.value: (*c.color, 255) for c in legend}
            out.write_colormap(1, {**table, legend.nodata: (0, 0, 0, 0)})

    _write_verified(
        path,
        read=read if legend.multilabel else lambda window: read(window)[np.newaxis],
        halve=lambda pixels: halve_mask(pixels, legend.nodata),
        profile=profile,
        describe=describe,
        tiles=tiles,
        digests=digests,
        cache_mb=cache_mb,
        between_steps=between_steps,
        options=_COMPRESSION,
    )


def write_probability_cog(
    path: Path,
    *,
    read: Callable[[Window], NDArray[np.uint8]],
    tiles: Sequence[Window],
    digests: Mapping[int, str | None],
    geobox: GeoBox,
    legend: Legend,
    tags: Mapping[str, str] | None = None,
    cache_mb: int = 64,
    between_steps: Callable[[], object] = lambda: None,
) -> None:
    """Write the probabilities, one uint8 band per class, scale 1/250, nodata 255; as `write_mask_cog` otherwise.

    Args:
        path: Where to write.
        read: Window -> probabilities `(class, y, x)`, uint8.
        tiles: Cores in the order of their indices.
        digests: Index of a tile -> SHA-256 of its probabilities; None where the tile is empty.
        geobox: Of the scene.
        legend: Its names become the bands' descriptions.
        tags: TIFF tags.
        cache_mb: GDAL's block cache while writing.
        between_steps: As for the mask.

    Raises:
        DamagedTilesError: ST-001, ST-002, as for the mask.
        ResourceError: RS-001.
        OutputError: OU-005.
    """
    count = len(legend)
    profile = {**_profile(geobox, count=count, dtype="uint8", nodata=PROBABILITY_NODATA), "photometric": "minisblack"}

    def describe(out: Any) -> None:
        out.update_tags(**(tags or {}))
        out.scales = (1 / PROBABILITY_STEPS,) * count
        out.offsets = (0.0,) * count
        _name_bands(out, legend)

    _write_verified(
        path,
        read=read,
        halve=lambda pixels: halve_mean(pixels, PROBABILITY_NODATA),
        profile=profile,
        describe=describe,
        tiles=tiles,
        digests=digests,
        cache_mb=cache_mb,
        between_steps=between_steps,
        options={**_COMPRESSION, "predictor": "YES"},
    )


def _name_bands(out: Any, legend: Legend) -> None:
    """One band per class. Three or four bytes a pixel would be taken for colours, the fourth for transparency."""
    out.colorinterp = (ColorInterp.gray,) + (ColorInterp.undefined,) * (len(legend) - 1)
    for info in legend:
        out.set_band_description(info.value + 1, info.name)


def legend_json(legend: Legend) -> str:
    """The legend as it stands in the tag `SCENEMASK_LEGEND`."""
    rows = [{"value": c.value, "name": c.name, "color": list(c.color), "background": c.background} for c in legend]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def cog_scratch_bytes(shape: tuple[int, int], *, count: int = 1, itemsize: int = 1) -> int:
    """Upper bound of the bytes on disk while a COG of this size is made: the file, its overviews, and a copy."""
    return int(2 * 1.4 * shape[0] * shape[1] * count * itemsize) + (1 << 20)


def _profile(geobox: GeoBox, *, count: int, dtype: str, nodata: int) -> dict[str, Any]:
    return {
        "height": geobox.height,
        "width": geobox.width,
        "count": count,
        "dtype": dtype,
        "nodata": nodata,
        "crs": None if geobox.crs_wkt is None else CRS.from_wkt(geobox.crs_wkt),
        "transform": geobox.transform,
    }


def _write_verified(
    path: Path,
    *,
    read: Callable[[Window], Pixels],
    halve: Callable[[Pixels], Pixels],
    profile: dict[str, Any],
    describe: Callable[[Any], None],
    tiles: Sequence[Window],
    digests: Mapping[int, str | None],
    cache_mb: int,
    between_steps: Callable[[], object],
    options: dict[str, Any],
) -> None:
    missing = [i for i in range(len(tiles)) if i not in digests]
    assert not missing, f"tiles without a record: {missing[:5]}"
    base = path.with_name(f"{path.stem}.{secrets.token_hex(6)}.tmp.tif")
    vrt = base.with_suffix(".vrt")
    path.unlink(missing_ok=True)
    done = False
    try:
        with _gdal(path, profile, cache_mb):
            source = _after(between_steps, read)
            levels = write_levels(
                base, read=source, halve=_after(between_steps, halve), profile=profile, describe=describe
            )
            write_vrt(vrt, levels)
            side = block_side(pixel_nbytes(profile))
            storage = {"blocksize": side, "bigtiff": "IF_SAFER", "num_threads": "ALL_CPUS", **options}
            rasterio.shutil.copy(str(vrt), str(path), driver="COG", **storage)
            _verify(
                path, levels, source, tiles, digests, nodata=int(profile["nodata"]), look=_after(between_steps, _pixels)
            )
        fsync_path(path)
        fsync_path(path.parent)
        done = True
    finally:
        _remove(base, path, keep=done)


@contextlib.contextmanager
def _gdal(path: Path, profile: dict[str, Any], cache_mb: int) -> Iterator[None]:
    """GDAL's settings while writing, and its errors in our words."""
    needed = cog_scratch_bytes(
        (profile["height"], profile["width"]), count=profile["count"], itemsize=np.dtype(profile["dtype"]).itemsize
    )
    try:
        with rasterio.Env(GDAL_CACHEMAX=cache_mb << 20, GDAL_PAM_ENABLED="NO"), warnings.catch_warnings():
            if profile["transform"].is_identity:  # a scene without georeference, which the user has allowed
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
            yield
    except (ResourceError, DamagedTilesError):
        raise
    except (RasterioError, CPLE_BaseError, OutputError) as error:
        # GDAL says no more than "write failed", and may have removed its file already: judge by what is free now.
        if free_bytes(path.parent) < needed:
            raise disk_full(path.parent, needed_bytes=needed) from error
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"GDAL could not write {path.name}: {error.__cause__ or error}",
            code="OU-005",
            title="Output cannot be written",
            where=str(path),
            fix="check the limit on file sizes (ulimit -f), the disk quota, and the kernel's log",
        ) from error


def _verify(
    path: Path,
    levels: Sequence[Level],
    read: Callable[[Window], Pixels],
    tiles: Sequence[Window],
    digests: Mapping[int, str | None],
    *,
    nodata: int,
    look: Callable[[Any, Window], Pixels],
) -> None:
    shape = levels[0].shape
    matches = in_order(lambda n: _level_matches(path, n, shape, levels[n].sha256), range(1, len(levels)))
    wrong = [number for number, same in enumerate(matches, 1) if not same]
    if wrong:
        raise _unlike(path, f"overviews {wrong}")
    with rasterio.open(path, driver="GTiff") as source:
        if source.shape != shape or len(source.overviews(1)) != len(levels) - 1:
            raise _unlike(path, f"shape {source.shape} with overviews {source.overviews(1)}")

    def differing_of(part: range) -> list[int]:
        with rasterio.open(path, driver="GTiff") as source:  # a thread's own
            return [i for i in part if not _matches(look(source, tiles[i]), digests[i], nodata)]

    parts = [range(first, len(tiles), num_threads()) for first in range(num_threads())]
    differing = [tiles[i] for i in sorted(itertools.chain.from_iterable(in_order(differing_of, parts)))]
    # Is it the file that differs from the store, or the store that differs from the ledger?
    with rasterio.open(path, driver="GTiff") as source:
        unlike_store = [w for w in differing if not np.array_equal(look(source, w), read(w))]
    if unlike_store:
        raise _unlike(path, list_windows(unlike_store))
    if differing:
        raise DamagedTilesError(
            f"{len(differing)} tile(s) of the scratch store are not what the ledger records: {list_windows(differing)}",
            code="ST-002",
            title="Stored pixels differ from the recorded ones",
            where=f"{path}, {differing[0]}",
            fix="run the same command again: these tiles are computed anew; if it repeats, check disk and memory",
            windows=differing,
        )


def _after(first: Callable[[], object], then: Callable[P, T]) -> Callable[P, T]:
    """`then`, with `first` called before it each time."""

    def both(*args: P.args, **kwargs: P.kwargs) -> T:
        first()
        return then(*args, **kwargs)

    return both


def _level_matches(path: Path, number: int, shape: tuple[int, int], sha256: str | None) -> bool:
    try:
        return hash_level(path, number, shape) == sha256
    except RasterioError:
        return False


def _pixels(source: Any, window: Window) -> Pixels:
    """Pixels of a tile; none at all where they cannot be read."""
    try:
        return np.asarray(source.read(window=to_rasterio(window)))
    except RasterioError:
        return np.empty(0)


def _matches(pixels: Pixels, digest: str | None, nodata: int) -> bool:
    if digest is None:
        return pixels.size > 0 and bool((pixels == nodata).all())
    return sha256_array(pixels) == digest


def _unlike(path: Path, what: str) -> OutputError:
    return OutputError(
        f"{path.name} was written without an error, yet reads back differently: {what}",
        code="OU-005",
        title="Output cannot be written",
        where=str(path),
        fix="run the same command again; if it repeats, check the disk",
    )


def _remove(base: Path, path: Path, *, keep: bool) -> None:
    """Remove temporary files, GDAL's own included, and unless `keep` the file itself."""
    doomed = [*base.parent.glob(f"{base.name.removesuffix('.tif')}*"), path.with_name(f"{path.stem}.ovr.tmp")]
    doomed += [] if keep else [path, *path.parent.glob(f"{path.name}.*tmp*")]
    for leftover in doomed:
        leftover.unlink(missing_ok=True)
