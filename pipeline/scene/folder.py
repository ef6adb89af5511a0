"""Files of a folder, or of an archive that stays packed: what they are called, and how GDAL finds them.

Knows names and bytes only; what a folder means is said by `safe.py`, `landsat.py` and `perband.py`.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.location import Location

_ZARR = ("zarr.json", ".zgroup", ".zmetadata", ".zarray")
_MOST_FILES = 20_000
_MOST_BYTES = 16 * 2**20
"""Of a text file that is read whole."""
MARK = "!/"
"""Between an archive and what is in it, in the text form of a member."""
_ARCHIVES = (".zip", ".tar")
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
CONTAINERS = (".nc", ".nc4", ".cdf")
"""NetCDF: files with several rasters, which GDAL finds by name."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder or an archive, listed once."""

    path: Path
    """Absolute."""
    names: tuple[str, ...]
    """Files in it, with `/` between folders, sorted."""

    @property
    def packed(self) -> bool:
        """Whether it is an archive."""
        return self.path.suffix.lower() in _ARCHIVES

    def href(self, name: str) -> str:
        """How `open_one` takes a file of it."""
        return f"{self.path}{MARK}{name}" if self.packed else str(self.path / name)

    def text(self, name: str) -> bytes:
        """A small file, whole.

        Raises:
            InputError: IN-058, it cannot be read.
        """
        try:
            if not self.packed:
                with (self.path / name).open("rb") as file:
                    return file.read(_MOST_BYTES)
            return read_member(self.path, name, _MOST_BYTES)
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
            raise unusable(self.path, f"{name} cannot be read: {error}") from error

    def ending(self, *suffixes: str) -> list[str]:
        """Names that end so, whatever their case."""
        return [name for name in self.names if name.lower().endswith(suffixes)]


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar by its name; what is in it is another matter."""
    return path.suffix.lower() in _ARCHIVES


def is_compressed_tar(path: Path) -> bool:
    """Whether a file is a tar that is compressed as a whole, by its name: no part of it can be read by itself."""
    return path.name.lower().endswith(_COMPRESSED_TARS)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any(os.path.isfile(path / name) for name in _ZARR)  # noqa: PTH113 - False, not an error, for odd names


def list_folder(path: Path) -> Folder:
    """List a folder, or an archive.

    Raises:
        InputError: IN-058, it cannot be read, or holds more files than any product.
    """
    path = path.absolute()
    try:
        names = _names_in_archive(path) if is_archive(path) and path.is_file() else _names_in_folder(path)
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise unusable(path, str(error)) from error
    if len(names) > _MOST_FILES:
        raise unusable(path, f"it holds more than {_MOST_FILES} files")
    return Folder(path, tuple(sorted(names)))


def _names_in_folder(path: Path) -> list[str]:
    found: list[str] = []
    for home, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = os.path.relpath(home, path)
        found += [name if here == "." else f"{here}/{name}" for name in files if not name.startswith(".")]
        if len(found) > _MOST_FILES:
            break
    return found


def _names_in_archive(path: Path) -> list[str]:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            return [one.filename for one in archive.infolist() if not one.is_dir()]
    with tarfile.open(path, "r:") as tar:
        return [one.name for one in tar if one.isfile()]


def split_member(href: str) -> tuple[Path, str] | None:
    """(archive, name) of a member's text form; None for everything else."""
    for suffix in (*_ARCHIVES, *CONTAINERS):
        archive, mark, name = href.partition(f"{suffix}{MARK}")
        if mark:
            return Path(archive + suffix), name
    return None


def gdal_path(archive: Path, name: str) -> str:
    """How GDAL reads a member where it lies; raises what zipfile and tarfile raise, KeyError as OSError.

    GDAL's own reader of tar files does not find names of more than 100 bytes.
    """
    if archive.suffix.lower() in CONTAINERS:
        return f'NETCDF:"{archive}":{name}'
    if archive.suffix.lower() == ".zip":
        return f"/vsizip/{{{archive}}}/{name}"
    with tarfile.open(archive, "r:") as tar:
        try:
            member = tar.getmember(name)
        except KeyError as error:
            raise OSError(f"there is no {name} in it") from error
        return f"/vsisubfile/{member.offset_data}_{member.size},{archive}"


def read_member(archive: Path, name: str, most: int) -> bytes:
    """The first bytes of a member; raises what zipfile and tarfile raise, KeyError as OSError."""
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as packed, packed.open(name) as file:
                return file.read(most)
        with tarfile.open(archive, "r:") as tar:
            member = tar.extractfile(name)
            return b"" if member is None else member.read(most)
    except KeyError as error:
        raise OSError(f"there is no {name} in it") from error


def unusable(path: Path | Location, why: str, fix: str = "check that it is whole") -> InputError:
    """IN-058."""
    return InputError(
        f"{path.name} cannot be used: {why}",
        code="IN-058",
        title="Folder or archive cannot be used",
        where=str(path),
        fix=fix,
    )
