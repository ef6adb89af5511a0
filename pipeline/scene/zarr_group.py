"""Zarr groups of either version, in a folder, in a bucket, or behind a web server.

Read by the zarr package, which knows the codecs of both versions; GDAL 3.10 knows those of version 2 only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bucket import Bucket
from pipeline.errors import InputError
from pipeline.location import BUCKETS
from pipeline.scene.gridded import Variables
from pipeline.scene.remote import RemoteFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from pipeline.access import Access
    from pipeline.location import Location

_SUFFIX = ".zarr"
_METADATA = ("zarr.json", ".zmetadata")
_SAMPLED = 16
"""Chunks of a variable behind a web server whose versions stand for all."""
UNLISTED = "a web server lists no files: of {} every variable's metadata and up to 16 chunks are looked at for changes."


@dataclass(frozen=True, slots=True)
class ZarrFolder:
    """A group on disk."""

    path: Path
    """Absolute."""
    opened_ns: int
    """When: what a process has kept of an earlier opening counts no more."""
    kind: str = "Zarr"
    north_up: bool = False

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's, without its suffix."""
        return self.path.stem

    def open(self) -> Variables:
        """As `Store`."""
        return _group(self.path)

    def check(self) -> None:
        """Nothing: a chunk that changed would have to be looked for."""

    def failures(self) -> contextlib.AbstractContextManager[None]:
        """A disk has none of its own."""
        return contextlib.nullcontext()

    def contents(self) -> Iterator[str]:
        """Names, sizes and times of all files."""
        for home, folders, files in os.walk(self.path):
            folders.sort()
            for file in sorted(files):
                status = os.stat(os.path.join(home, file))  # noqa: PTH116, PTH118 - millions of chunks
                yield f"{os.path.relpath(home, self.path)}/{file} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class ZarrPrefix:
    """A group in a bucket."""

    location: Location
    """Of the outermost group."""
    inner: str
    """Path of the group in it; empty: itself."""
    access: Access
    opened_ns: int
    """As of `ZarrFolder`."""
    kind: str = "Zarr"
    north_up: bool = False

    def __str__(self) -> str:
        return str(self.location.child(self.inner)) if self.inner else str(self.location)

    @property
    def name(self) -> str:
        """Last part of the key, without its suffix."""
        return Path(str(self)).stem

    @property
    def bucket(self) -> Bucket:
        """Where it lies."""
        return Bucket(self.location.host, self.access, self.location.scheme)

    def open(self) -> Variables:
        """As `Store`."""
        from zarr.storage import ObjectStore  # noqa: PLC0415 - imports obstore, an extra

        return _group(ObjectStore(self.bucket.under(self.location.key), read_only=True), self.inner)

    def check(self) -> None:
        """Nothing: a chunk that changed would have to be looked for."""

    def failures(self) -> contextlib.AbstractContextManager[None]:
        """What obstore raises, as ours."""
        return self.bucket.failures(self.location.key)

    def contents(self) -> Iterator[str]:
        """Keys, sizes and ETags of all objects."""
        for key, facts in self.bucket.list_facts(self.location.child(self.inner).key.rstrip("/") + "/"):
            yield f"{key} {facts.size} {facts.etag}"


@dataclass(frozen=True, slots=True)
class ZarrWeb:
    """A group behind a web server, which lists nothing: what is in it is told by its consolidated metadata."""

    root: RemoteFile
    """Address of the outermost group; the query, where a signature stands, goes with every request."""
    inner: str
    """Path of the group in it; empty: itself."""
    opened_ns: int
    """As of `ZarrFolder`."""
    kind: str = "Zarr"
    north_up: bool = False

    def __str__(self) -> str:
        return str(self.root.location.child(self.inner)) if self.inner else str(self.root)

    @property
    def name(self) -> str:
        """Last part of the address, without its suffix."""
        return Path(str(self)).stem

    def open(self) -> Variables:
        """As `Store`.

        Raises:
            InputError: IN-061, no metadata tell of all its variables.
        """
        return _group(_web_store(self), self.inner)

    def check(self) -> None:
        """Nothing: a chunk that changed would have to be looked for."""

    def failures(self) -> contextlib.AbstractContextManager[None]:
        """They are ours already."""
        return contextlib.nullcontext()

    def file(self, key: str) -> RemoteFile:
        """What lies under the outermost group."""
        return replace(self.root, location=self.root.location.child(key))

    def fetch(self, key: str, start: int, stop: int | None) -> bytes | None:
        """Bytes of a file, from behind its end where `start` is negative; None where there is none."""
        file = self.file(key)
        try:
            if start < 0:
                size = file.facts().size
                start, stop = max(size + start, 0), size
            return file.read(start, _TO_THE_END if stop is None else stop)
        except InputError as error:
            if error.code == "IN-040":
                return None
            raise

    def contents(self) -> Iterator[str]:
        """The metadata, and size and ETag of some chunks of each variable."""
        for key in _METADATA:
            yield f"{key} {(self.fetch(key, 0, None) or b'').hex()}"
        for name, array in self.open().arrays.items():
            for key in _some_chunks(array):
                try:
                    facts = self.file(f"{self.inner}/{name}/{key}".lstrip("/")).facts()
                except InputError as error:
                    if error.code != "IN-040":
                        raise
                    continue
                yield f"{name}/{key} {facts.size} {facts.etag}"


_TO_THE_END = 2**40


def zarr_store(place: Path | Location, access: Access) -> ZarrFolder | ZarrPrefix | ZarrWeb:
    """The store at a path or an address."""
    now = time.time_ns()
    if isinstance(place, Path):
        return ZarrFolder(place.absolute(), now)
    outer, mark, inner = place.key.rstrip("/").rpartition(f"{_SUFFIX}/")
    root = replace(place, key=outer + _SUFFIX if mark else inner)
    inner = inner if mark else ""
    if place.scheme in BUCKETS:
        return ZarrPrefix(root, inner, access.resolved(), now)
    return ZarrWeb(RemoteFile(root, access.resolved()), inner, now)


def _group(where: Any, inner: str = "") -> Variables:
    import zarr  # noqa: PLC0415 - slow to load and seldom needed

    group: Any = zarr.open_group(where, mode="r")
    if inner:  # from the outermost one, whose metadata may tell of all
        group = group[inner]
    return Variables(dict(group.attrs), dict(sorted(group.arrays())))


def _some_chunks(array: Any) -> list[str]:
    """Keys of chunks, or shards, spread evenly over an array."""
    sides = array.shards or array.chunks
    counts = [max(1, -(-n // side)) for n, side in zip(array.shape, sides, strict=True)]
    total = 1
    for count in counts:
        total *= count
    keys = []
    for k in range(min(total, _SAMPLED)):
        flat, index = k * total // min(total, _SAMPLED), []
        for count in reversed(counts):
            flat, at = divmod(flat, count)
            index.append(at)
        keys.append(str(array.metadata.encode_chunk_key(tuple(reversed(index)))))
    return keys


def _part(request: Any) -> tuple[int, int | None]:
    """(first byte, the one after the last) of a request of zarr's; see `ZarrWeb.fetch`."""
    if request is None:
        return 0, None
    if hasattr(request, "suffix"):
        return -int(request.suffix), None
    return (int(request.start), int(request.end)) if hasattr(request, "end") else (int(request.offset), None)


def _web_store(web: ZarrWeb) -> Any:
    """Zarr's store on our own requests, with their walls, retries and time-outs."""
    from zarr.abc.store import Store  # noqa: PLC0415

    class WebStore(Store):
        supports_writes = supports_deletes = supports_partial_writes = False
        supports_listing = True  # so that zarr asks, and we tell why not

        def __eq__(self, other: object) -> bool:
            return self is other

        __hash__ = object.__hash__

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            data = await asyncio.to_thread(web.fetch, key, *_part(byte_range))
            return None if data is None else prototype.buffer.from_bytes(data)

        async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
            return list(await asyncio.gather(*(self.get(key, prototype, one) for key, one in key_ranges)))

        async def exists(self, key: str) -> bool:
            return await asyncio.to_thread(web.fetch, key, 0, 1) is not None

        async def _refused(self, *_: Any) -> None:
            self._check_writable()  # raises

        set = delete = _refused  # type: ignore[assignment]

        def _listed(self, *_: Any) -> AsyncIterator[str]:
            raise InputError(
                f"{web.name} has no consolidated metadata, and a web server does not list what is in it",
                code="IN-061",
                title="Zarr group cannot be listed",
                where=str(web),
                fix="zarr.consolidate_metadata(store) where it is written; or give its address in the bucket",
            )

        list = list_prefix = list_dir = _listed  # type: ignore[assignment]

    return WebStore(read_only=True)
