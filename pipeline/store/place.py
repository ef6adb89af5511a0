"""Where a run keeps what must outlive it: a folder on a disk, or a prefix of a bucket. The only difference they make.

In a bucket, names are listed for two things only, both of which bear a list that lags: the ledger, where a record that
is not seen yet costs a tile computed again, and cleaning up.
"""

from __future__ import annotations

import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.bucket import Bucket, ConflictError, NoObjectError
from pipeline.store.files import (
    atomic_write_bytes,
    disk_full_as_error,
    from_bytes,
    keep_first,
    private_folder,
)
from pipeline.store.logs import FileLog, ObjectLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from pipeline.location import Location
    from pipeline.store.logs import Fsync, Log

_REQUESTS_AT_ONCE = 16


class Place(Protocol):
    """What is asked of either. A value: it travels to workers as it is."""

    def __truediv__(self, name: str) -> Place:
        """A place inside it."""
        ...

    def __str__(self) -> str:
        """The path or address, for people and for plan.json."""
        ...

    @property
    def name(self) -> str:
        """Last part of the path or address."""
        ...

    def make(self, *, option: str = "-o") -> None:
        """Make it, readable by its owner only; one that is there is kept.

        Raises:
            UsageError: CF-002, it cannot be made; `option` put it there.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether something lies there under a name, without reading it.

        Raises:
            InfrastructureError: ST-010 to ST-013.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """What lies there under a name; None where there is nothing, or nothing that can be read."""
        ...

    def read_all(self, ending: str) -> Iterator[bytes]:
        """All that lies right in it under a name that ends so."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write or replace, whole or not at all.

        Raises:
            ResourceError: RS-001, no space.
            InfrastructureError: ST-010 to ST-013.
        """
        ...

    def write_first(self, name: str, data: bytes) -> None:
        """Write unless it is there: of several that try at once one succeeds, and the others leave it alone."""
        ...

    def delete(self, name: str) -> None:
        """Remove one thing; what is not there is removed already."""
        ...

    def remove(self) -> None:
        """Remove all that lies in it, and itself."""
        ...

    def sweep(self) -> int:
        """Remove what killed writers of arrays left half-written; only where no writer can be. How much it was."""
        ...

    def open_log(self, name: str, *, fsync: Fsync) -> Log:
        """Something to append to, which only this process has."""
        ...

    def arrays(self) -> Any:
        """What Zarr calls a store."""
        ...

    def failures(self, *, needed_bytes: int | None = None) -> AbstractContextManager[None]:
        """Turn what Zarr lets through, where the place itself fails, into one of our errors; others pass unchanged."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder; on a file system that all workers share, if they write there."""

    path: Path

    def __truediv__(self, name: str) -> Folder:
        """See `Place`."""
        return Folder(self.path / name)

    def __str__(self) -> str:
        """See `Place`."""
        return str(self.path)

    @property
    def name(self) -> str:
        """See `Place`."""
        return self.path.name

    def make(self, *, option: str = "-o") -> None:
        """See `Place`."""
        private_folder(self.path, option=option)

    def has(self, name: str) -> bool:
        """See `Place`."""
        with contextlib.suppress(OSError):
            return (self.path / name).is_file()
        return False

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        try:
            return (self.path / name).read_bytes()
        except OSError:
            return None

    def read_all(self, ending: str) -> Iterator[bytes]:
        """See `Place`."""
        for path in sorted(self.path.glob(f"*{ending}")):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue  # removed since it was listed
            yield data

    def write(self, name: str, data: bytes) -> None:
        """See `Place`."""
        atomic_write_bytes(self.path / name, data)

    def write_first(self, name: str, data: bytes) -> None:
        """See `Place`."""
        keep_first(self.path / name, data)

    def delete(self, name: str) -> None:
        """See `Place`."""
        (self.path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """See `Place`."""
        shutil.rmtree(self.path, ignore_errors=True)

    def sweep(self) -> int:
        """See `Place`."""
        leftovers = list(self.path.rglob("*.partial"))
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)

    def open_log(self, name: str, *, fsync: Fsync) -> FileLog:
        """See `Place`."""
        self.make()
        return FileLog(self.path / name, fsync=fsync)

    def arrays(self) -> str:
        """See `Place`."""
        return str(self.path)

    def failures(self, *, needed_bytes: int | None = None) -> AbstractContextManager[None]:
        """See `Place`."""
        return disk_full_as_error(self.path, needed_bytes=needed_bytes)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix of a bucket, where all workers reach it without a shared file system."""

    bucket: Bucket
    key: str
    """Without a slash at its ends."""

    @classmethod
    def at(cls, location: Location, bucket: Bucket) -> Prefix:
        """The prefix that an address means."""
        return cls(bucket, location.key.strip("/"))

    def __truediv__(self, name: str) -> Prefix:
        """See `Place`."""
        return replace(self, key=f"{self.key}/{name}".lstrip("/"))

    def __str__(self) -> str:
        """See `Place`."""
        return self.bucket.where(self.key)

    @property
    def name(self) -> str:
        """See `Place`."""
        return self.key.rpartition("/")[2]

    def make(self, *, option: str = "-o") -> None:
        """Nothing: prefixes need not be made."""

    def has(self, name: str) -> bool:
        """See `Place`."""
        with contextlib.suppress(NoObjectError):
            self.bucket.head((self / name).key)
            return True
        return False

    def read(self, name: str) -> bytes | None:
        """See `Place`."""
        with contextlib.suppress(NoObjectError):
            return self.bucket.get((self / name).key)[0]
        return None

    def read_all(self, ending: str) -> Iterator[bytes]:
        """See `Place`."""
        keys = [key for key in self._keys() if key.endswith(ending) and "/" not in key[len(self.key) + 1 :]]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            yield from (data for data in pool.map(self._get, keys) if data is not None)

    def write(self, name: str, data: bytes) -> None:
        """See `Place`."""
        self.bucket.put((self / name).key, data)

    def write_first(self, name: str, data: bytes) -> None:
        """See `Place`."""
        with contextlib.suppress(ConflictError):
            self.bucket.put((self / name).key, data, only_new=True)

    def delete(self, name: str) -> None:
        """See `Place`."""
        self.bucket.delete((self / name).key)

    def remove(self) -> None:
        """See `Place`."""
        self.bucket.delete_all(self._keys())

    def sweep(self) -> int:
        """Nothing: an object is there whole or not at all."""
        return 0

    def open_log(self, name: str, *, fsync: Fsync) -> ObjectLog:
        """See `Place`; what is appended is there for good."""
        del fsync
        return ObjectLog(self.bucket, (self / name).key)

    def arrays(self) -> Any:
        """See `Place`."""
        from zarr.storage import ObjectStore  # noqa: PLC0415 - imports obstore, an extra

        return ObjectStore(self.bucket.under(self.key))

    def failures(self, *, needed_bytes: int | None = None) -> AbstractContextManager[None]:
        """See `Place`."""
        del needed_bytes
        return self.bucket.failures(self.key)

    def _keys(self) -> list[str]:
        return self.bucket.list_keys(f"{self.key}/")

    def _get(self, key: str) -> bytes | None:
        with contextlib.suppress(NoObjectError):  # removed since it was listed
            return self.bucket.get(key)[0]
        return None


def as_place(where: Path | Place) -> Place:
    """A path as a place; places stay."""
    return Folder(where) if isinstance(where, Path) else where


def read_object(place: Place, name: str) -> dict[str, object] | None:
    """The JSON object that lies there; None where it is absent, torn or something else."""
    return from_bytes(place.read(name))
