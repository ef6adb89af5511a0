"""A scene in a raster file, on disk or behind a server: GeoTIFF, JPEG 2000, JPEG or PNG, read window by window."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rasterio.windows import Window as RasterioWindow

from pipeline.bucket import failed
from pipeline.errors import InputError
from pipeline.scene.base import Band, Block, assert_inside, make_block, shared_nodata
from pipeline.scene.datasets import (
    GDAL_ERRORS,
    DatasetKey,
    borrow_dataset,
    gdal_options,
    give_back,
    innermost_message,
)
from pipeline.scene.magic import HEAD_BYTES, read_ends
from pipeline.scene.select import select_bands
from pipeline.scene.validity import valid_by_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox, Window
    from pipeline.scene.base import Json
    from pipeline.scene.remote import RemoteFile

IGNORED = "ground control points or RPCs are ignored: the scene is taken in pixel coordinates."
REOPENINGS = 3
"""Of a file behind a server, for one window: GDAL asks again after a bad status, never after a body cut short."""
_SHORT_READ = re.compile(r"got \d+ bytes, expected \d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class RasterScene:
    """A raster file as a recipe: small, frozen, picklable; made by `open_scene`. Files are opened where it is read."""

    path: str
    """Absolute path on a local disk, or an address without its query."""
    remote: RemoteFile | None = None
    """How it is reached, where it is not on a local disk."""
    member: str = ""
    """What it is called inside the file, where that is an archive or a container of several rasters."""
    within: str = ""
    """What GDAL opens then."""
    driver: str
    """GDAL driver, from the file's first bytes; no other may open it."""
    size: int = 0
    """Bytes of the file."""
    mtime_ns: int = 0
    """Time of the file's last change."""
    digest: str = ""
    """BLAKE2b of the first and last 64 KiB."""
    etag: str = ""
    """What a server calls this version of the file."""
    geobox: GeoBox
    """Shape, transform and CRS, `assume_crs` already applied."""
    bands: tuple[Band, ...]
    """The selected bands."""
    all_bands: tuple[Band, ...]
    """All bands of the file but alpha."""
    alpha: tuple[int, ...]
    """Numbers of the alpha bands, 1-based."""
    mask: str
    """How the file masks pixels besides nodata and alpha: "none", "dataset" or "band"."""
    dtypes: tuple[str, ...]
    """Dtype of each band of `all_bands`."""
    block_hw: tuple[int, int]
    """(height, width) of the blocks that are decoded whole."""
    bands_together: bool
    """Whether a block holds all bands of its pixels."""
    nodata_override: float | None
    """Nodata given by the user in place of the file's."""
    assumed_crs: str | None
    """CRS given by the user for a file without one, as written."""
    warnings: tuple[str, ...] = ()
    """What a person should know, one sentence each."""

    @property
    def name(self) -> str:
        """File name without its last suffix."""
        return Path(self.member or self.path).stem

    @property
    def dtype(self) -> np.dtype[Any]:
        """The file's dtype; where selected bands differ, the smallest one that holds them all."""
        by_number = {band.index: dtype for band, dtype in zip(self.all_bands, self.dtypes, strict=True)}
        return np.result_type(*{by_number[band.index] for band in self.bands})

    @property
    def nodata(self) -> float | None:
        """Nodata shared by all selected bands; None when there is none or they differ."""
        return shared_nodata(self.bands)

    def select(self, bands: Sequence[str | int]) -> RasterScene:
        """The same file with other bands; see `select_bands` for how they are found.

        Raises:
            InputError: IN-011, unknown or ambiguous band.
        """
        return replace(self, bands=select_bands(self.all_bands, bands, where=self.path))

    def read(self, window: Window) -> NDArray[Any]:
        """Stored values of a window, shape `(band, y, x)`; one call to GDAL.

        Raises:
            InputError: IN-005 when a block cannot be decoded, IN-015 when the file changed.
        """
        return self._read_bands(window, [band.index for band in self.bands])

    def read_block(self, window: Window) -> Block:
        """Stored values of a window with their validity.

        Valid = not the band's nodata, finite, alpha > 0, and not masked by an internal or external mask. Masks are
        read only where the file has them.

        Raises:
            InputError: IN-005 when a block cannot be decoded, IN-015 when the file changed.
        """
        indexes = [band.index for band in self.bands]
        stored = self._read_bands(window, indexes + list(self.alpha))
        data, alpha = stored[: len(indexes)], stored[len(indexes) :]
        valid = valid_by_value(data, self.bands)
        opaque = np.all(alpha > 0, axis=0, keepdims=True) if self.alpha else None
        for extra in (self._read_mask(window, indexes), opaque):
            if extra is not None:
                valid = extra if valid is None else valid & extra
        return make_block(data, valid)

    def decoded_bytes(self, window: Window) -> int:
        """Bytes of the blocks that are decoded for a window, which GDAL keeps for the next one."""
        height, width = self.block_hw
        rows = -(-window.row_stop // height) - window.row_off // height
        cols = -(-window.col_stop // width) - window.col_off // width
        bands = len(self.all_bands if self.bands_together else self.bands) + len(self.alpha)
        masks = {"none": 0, "dataset": 1, "band": len(self.bands)}[self.mask]
        return rows * height * cols * width * (bands * self.dtype.itemsize + masks)

    def fingerprint(self) -> dict[str, Json]:
        """Identity of the file as it is now, and of what was chosen from it.

        Raises:
            InputError: IN-001, IN-005 or IN-040 when the file cannot be read any more.
            InfrastructureError: ST-010 to ST-013 when its server cannot be reached.
        """
        found = self._identify()
        return {
            "file": Path(self.path).name,
            **({"member": self.member} if self.member else {}),
            "size": found.size,
            "mtime_ns": found.mtime_ns,
            "digest": found.digest,
            **({} if self.remote is None else {"etag": found.etag}),
            "bands": [band.index for band in self.bands],
            "nodata": None if self.nodata_override is None else repr(self.nodata_override),  # NaN is not JSON
            "assumed_crs": self.assumed_crs,
        }

    def dataset(self) -> Any:
        """This thread's open rasterio dataset, for what the scene itself does not tell; never close it.

        Raises:
            InputError: IN-015 when the file is not the one that was opened first.
            InfrastructureError: ST-010 to ST-013 when its server cannot be reached.
        """
        try:
            return self._borrow()
        except (*GDAL_ERRORS, OSError) as error:
            raise cannot_read(self.path, f"{self.name} cannot be opened", error) from error

    def _borrow(self) -> Any:
        if self.remote is not None:
            return borrow_dataset(self._remote_key(self.remote), opened=self._open_remote)
        status = Path(self.path).stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            self._refuse_if_changed()
        return borrow_dataset(DatasetKey(self.within or self.path, self.driver, status.st_size, status.st_mtime_ns))

    def _remote_key(self, file: RemoteFile) -> DatasetKey:
        who = f"{file.access.endpoint_of(file.location.scheme)} {file.location} {file.location.query}"
        return DatasetKey(who, self.driver, self.size, self.mtime_ns, self.etag)

    def _open_remote(self) -> Any:
        assert self.remote is not None
        facts = self.remote.facts()
        if (facts.size, facts.etag) != (self.size, self.etag):
            self._refuse_if_changed()
        return self.remote.open(self.driver, version=self.etag)

    def _identify(self) -> FileIdentity:
        return identify_remote(self.remote) if self.remote is not None else identify(self.path)

    def _refuse_if_changed(self) -> None:
        """Another time stamp alone is no change: a copy on another machine has the same bytes."""
        found = self._identify()
        if (found.digest, found.size, found.etag) != (self.digest, self.size, self.etag):
            raise InputError(
                f"{self.name} had {self.size} bytes when opened and is another file now ({found.size} bytes)",
                code="IN-015",
                title="Scene changed" if self.remote else "Scene changed on disk",
                where=self.path,
                fix="leave scenes alone while a run reads them; start again with --overwrite",
            )

    def _read_bands(self, window: Window, indexes: list[int]) -> NDArray[Any]:
        assert_inside(window, self.geobox)
        wanted = _to_rasterio(window)
        return self._decode(
            f"{Path(self.path).name} cannot be decoded",
            window,
            lambda dataset: dataset.read(indexes, window=wanted, out_dtype=self.dtype),
        )

    def _read_mask(self, window: Window, indexes: list[int]) -> NDArray[np.bool_] | None:
        """Shape `(1, y, x)` or `(band, y, x)`, or None when the file has no mask of its own."""
        if self.mask == "none":
            return None
        wanted = indexes if self.mask == "band" else indexes[:1]
        masks = self._decode(
            f"the mask of {Path(self.path).name} cannot be decoded",
            window,
            lambda dataset: dataset.read_masks(wanted, window=_to_rasterio(window)),
        )
        return np.asarray(masks > 0)

    def _decode(self, what: str, window: Window, read: Callable[[Any], NDArray[Any]]) -> NDArray[Any]:
        """What `read` gets from the dataset; behind a server in several attempts, each with the file opened anew.

        After each failure the server is asked what is wrong: what it says decides whether there is any use.
        """
        if self.remote is None:
            dataset = self.dataset()
            try:
                return read(dataset)
            except GDAL_ERRORS as error:
                raise cannot_read(self.path, what, error, window=window) from error
        failure: BaseException | None = None
        deadline = time.monotonic() + self.remote.access.stall_s
        for _ in range(REOPENINGS + 1):
            try:
                dataset = self._borrow()
                with gdal_options(self.remote.gdal_options()):
                    return read(dataset)
            except GDAL_ERRORS as error:
                failure = error
            give_back(self._remote_key(self.remote))
            self.remote.distrust()
            if time.monotonic() > deadline:
                self.remote.hurried().facts()
                raise failed(self.path, f"it stood still, or kept failing, in {window}")
            facts = self.remote.facts()
            if (facts.size, facts.etag) != (self.size, self.etag):
                self._refuse_if_changed()
        assert failure is not None
        if _SHORT_READ.search(innermost_message(failure)):
            raise failed(self.path, f"the answer was cut short {REOPENINGS + 1} times in {window}")
        raise cannot_read(self.path, what, failure, window=window) from failure


class FileIdentity(NamedTuple):
    """Which file it is, and which version of it."""

    digest: str
    """BLAKE2b of the first and last 64 KiB."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change."""
    etag: str = ""
    """What a server calls it."""


def identify(path: str) -> FileIdentity:
    """Identity of a file on disk.

    Raises:
        InputError: IN-001 when it is gone, IN-005 when it cannot be read.
    """
    try:
        head, tail, status = read_ends(Path(path))
    except FileNotFoundError as error:
        raise not_found(path) from error
    except OSError as error:
        raise cannot_read(path, f"{Path(path).name} cannot be read", error) from error
    return FileIdentity(digest_ends(head, tail), status.st_size, status.st_mtime_ns)


def identify_remote(file: RemoteFile) -> FileIdentity:
    """Identity of a file behind a server; raises as `RemoteFile.facts`."""
    head, tail, facts = file.ends(HEAD_BYTES)
    return FileIdentity(digest_ends(head, tail), facts.size, facts.mtime_ns, facts.etag)


def digest_ends(head: bytes, tail: bytes) -> str:
    """BLAKE2b, 128 bit, of the two ends of a file."""
    return hashlib.blake2b(head + tail, digest_size=16).hexdigest()


def not_found(path: str) -> InputError:
    """IN-001."""
    remote = path.startswith("/vsi")
    return InputError(
        f"there is no file {path}",
        code="IN-001",
        title="Scene not found",
        where=path,
        fix="give its address (s3://bucket/key or https://…), or download it first" if remote else "check the path",
    )


def cannot_read(path: str, what: str, error: BaseException, *, window: Window | None = None) -> InputError:
    """IN-005 with the cause that GDAL or the system gave."""
    return InputError(
        f"{what}: {innermost_message(error)}",
        code="IN-005",
        title="Scene cannot be read",
        where=path if window is None else f"{path}, {window}",
        fix="the file is damaged or not readable for you: check permissions, or copy or download it again",
    )


def _to_rasterio(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col_off, window.row_off, window.width, window.height)
