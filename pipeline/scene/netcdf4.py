"""NetCDF-4 files, which are HDF5, on disk or on a server: read by h5py, window by window.

GDAL's reader follows what HDF5 calls external storage to any file of this machine, and reads no file on a server. The
classic format, which cannot point anywhere, is read by GDAL (`netcdf.py`), and from disks only.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bucket import ObjectFacts
from pipeline.errors import InputError, UsageError
from pipeline.location import is_remote
from pipeline.scene.folder import CONTAINERS
from pipeline.scene.gridded import Variables
from pipeline.scene.raster import FileIdentity, identify, identify_remote
from pipeline.scene.remote import BlockReader, remote_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.access import Access
    from pipeline.scene.remote import RemoteFile

_HDF5 = b"\x89HDF\r\n\x1a\n"
_CLASSIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
_MOST_OBJECTS = 4096


@dataclass(frozen=True, slots=True)
class NetCdf4:
    """A NetCDF-4 file as a recipe."""

    path: str
    """Absolute path, or the address without its query."""
    identity: FileIdentity
    """Of the file that was opened first."""
    remote: RemoteFile | None = None
    """How it is reached, where it is not on a disk."""
    kind: str = "NetCDF"
    north_up: bool = True

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The file's, without its suffix."""
        return Path(self.path).stem

    def open(self) -> Variables:
        """As `Store`, of the group with the largest grid.

        Raises:
            InputError: IN-053, something in it lies in another file.
            UsageError: CF-053, the libraries are not installed.
        """
        h5netcdf, h5py = _libraries()
        _close_files(but=self)
        if self.remote is None:
            file = h5py.File(self.path, "r", locking=False)
        else:
            version = ObjectFacts(self.identity.size, self.identity.mtime_ns, self.identity.etag)
            file = h5py.File(BlockReader(self.remote, version), "r")
        _files[self] = file
        _refuse_other_files(file, self.path)
        return _largest(h5netcdf.File(file, "r", phony_dims="sort"))

    def check(self) -> None:
        """IN-015 where the file on disk is another one; on a server each request asks for the same version."""
        if self.remote is not None:
            return
        status = Path(self.path).stat()
        if (status.st_size, status.st_mtime_ns) == (self.identity.size, self.identity.mtime_ns):
            return
        if identify(self.path).digest != self.identity.digest:
            raise InputError(
                f"{self.name} changed while it was read",
                code="IN-015",
                title="Scene changed",
                where=self.path,
                fix="leave scenes alone while a run reads them; start again with --overwrite",
            )

    def failures(self) -> contextlib.AbstractContextManager[None]:
        """They are ours already: h5py lets through what reading raises."""
        return contextlib.nullcontext()

    def contents(self) -> Iterator[str]:
        """Size, time, ETag and digest of both ends."""
        yield str(tuple(identify(self.path) if self.remote is None else identify_remote(self.remote)))


_files: weakref.WeakValueDictionary[NetCdf4, Any] = weakref.WeakValueDictionary()
"""That are open."""


def _close_files(*, but: NetCdf4) -> None:
    """Close other versions of a file: as long as one is open, HDF5 takes what is opened under its name for the same."""
    for store, file in list(_files.items()):
        if store.path == but.path and store != but:
            file.close()


@atexit.register
def _close_all() -> None:
    """What HDF5 finds open at the end it closes when Python is gone already, and calls it for that."""
    for file in list(_files.values()):
        file.close()


def netcdf4_at(source: Any, access: Access) -> NetCdf4 | None:
    """The NetCDF-4 file at a path or an address; None where it is no NetCDF.

    Raises:
        InputError: IN-014, NetCDF of the classic format on a server; IN-040 to IN-042.
        InfrastructureError: ST-010 to ST-013.
        UsageError: CF-050, CF-051, CF-054.
    """
    if not is_remote(source):
        path = Path(source)
        if path.suffix.lower() not in CONTAINERS or _head(path) != _HDF5:
            return None
        path = path.absolute()
        return NetCdf4(str(path), identify(str(path)))
    file = remote_file(source, access)
    if file.location.suffix not in CONTAINERS:
        return None
    head = file.read(0, len(_HDF5))
    if head.startswith(_CLASSIC):
        raise InputError(
            f"{file.location.name} is NetCDF of the classic format, which is read from disks only",
            code="IN-014",
            title="Unsupported raster format",
            where=str(file),
            fix="download it, or write it as NetCDF-4: nccopy -k nc4 -d 1",
        )
    return NetCdf4(str(file), identify_remote(file), file) if head == _HDF5 else None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5))
    except OSError:
        return b""  # said in other words where it is opened


def _libraries() -> tuple[Any, Any]:
    try:
        import h5netcdf  # noqa: PLC0415 - an extra
        import h5py  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "NetCDF-4 files need the packages h5netcdf and h5py, which are not installed",
            code="CF-053",
            title="Extra is missing",
            fix='pip install "scenemask[netcdf]"',
        ) from error
    return h5netcdf, h5py


def _refuse_other_files(file: Any, where: str) -> None:
    """HDF5 may keep pixels, or whole variables, in any other file of this machine."""
    import h5py  # noqa: PLC0415 - an extra

    seen = 0

    def look(name: str, link: Any) -> str | None:
        """Not None: h5py stops there."""
        nonlocal seen
        seen += 1
        if seen > _MOST_OBJECTS:
            return f"it holds more than {_MOST_OBJECTS} objects"
        found = file[name] if isinstance(link, h5py.HardLink) else None
        elsewhere = isinstance(found, h5py.Dataset) and (found.external or found.is_virtual)
        if elsewhere or isinstance(link, h5py.ExternalLink):
            return f"its {name} lies in another file"
        return None

    why = file.visititems_links(look)
    if why is not None:
        raise InputError(
            f"{Path(where).name} is not followed: {why}",
            code="IN-053",
            title="Reference is not followed",
            where=where,
            fix="write one file that holds all of it, with h5repack or ncks",
        )


def _largest(root: Any) -> Variables:
    """Variables of the group with the largest grid, and of those that it lies in, which may hold its coordinates."""
    best: Variables | None = None
    size = -1
    waiting: list[tuple[Any, dict[str, Any]]] = [(root, {})]
    while waiting:
        group, outer = waiting.pop()
        own = {str(name): variable for name, variable in group.variables.items()}
        grids = [variable.shape[-2:] for variable in own.values() if len(variable.shape) >= 2]  # noqa: PLR2004
        largest = max((math.prod(shape) for shape in grids), default=0)
        if largest > size:
            best, size = Variables(dict(group.attrs), outer | own, root), largest
        waiting += [(inner, outer | own) for inner in group.groups.values()]
    assert best is not None
    return best
