"""Open GDAL datasets, a few per thread: the only place that opens rasters, and its rules.

A GDAL dataset must not be used by two threads at once, so each thread has its own, kept in a small cache, least
recently used out first. A scene is only the recipe; it can travel to another thread or process and opens there when
first read.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import rasterio
from rasterio._env import set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.session import DummySession

from pipeline.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_OPEN_PER_THREAD = 16
"""Datasets kept open by one thread, enough for a product with a file per band; with a handful of threads far below the
usual limit of 1024 files."""


GDAL_ERRORS = (RasterioError, CPLE_BaseError, CRSError, UnicodeDecodeError)
"""What rasterio raises over a damaged file: its own family, and what slips through it from GDAL and from bad text."""


class DatasetKey(NamedTuple):
    """What is opened; another size or time is another file under the same name."""

    path: str
    """Absolute path on a local disk, or an address with its query: never shown."""
    driver: str
    """The one GDAL driver allowed to open it."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change."""
    etag: str = ""
    """What a server calls this version of the file."""


class _Cache(OrderedDict[DatasetKey, Any]):
    """Datasets of one thread; a class of its own because weak references to plain dicts do not exist."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # identity: a WeakSet holds the caches


BLOCK_CACHE_BYTES = 128 * 2**20
"""For decoded blocks unless told otherwise: enough that tiles side by side do not decode their shared rim twice."""
_block_cache_told = False
"""Whether this process has told GDAL how much that may be; it does so before it opens anything."""

_THREADED = frozenset({"GTiff", "COG"})
"""Drivers that decode the blocks of one window side by side."""

_decoding_threads = 1
_local = threading.local()
_caches: weakref.WeakSet[_Cache] = weakref.WeakSet()
_lock = threading.Lock()


@contextlib.contextmanager
def silenced(category: type[Warning]) -> Iterator[None]:
    """Silences a warning of rasterio's.

    `warnings.catch_warnings` swaps a list that all threads share, hence the lock.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


def without_georeference() -> contextlib.AbstractContextManager[None]:
    """Silences the one that pixels have no place on Earth."""
    return silenced(NotGeoreferencedWarning)


_ALWAYS = {
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # else files beside a scene are found in any case, not only as checked
}


def open_dataset(path: str, driver: str, options: Mapping[str, str] | None = None) -> Any:
    """Open a raster with one driver and no other; the caller closes it.

    A scene without georeference is answered by `open_scene` in its own words, so rasterio's warning would only repeat
    it.

    Args:
        path: As GDAL takes it.
        driver: The one allowed.
        options: Of GDAL, for a file behind a server; read it under the same ones.
    """
    if not _block_cache_told:
        limit_block_cache()
    with without_georeference(), gdal_options({**_ALWAYS, **(options or {})}):
        # Not behind a server: on several threads GDAL 3.10 gives wrong pixels for a request that failed, and no error.
        several = _decoding_threads > 1 and driver in _THREADED and not options
        return rasterio.open(path, driver=driver, **({"num_threads": _decoding_threads} if several else {}))


@contextlib.contextmanager
def gdal_options(options: Mapping[str, str]) -> Iterator[None]:
    """GDAL's settings in this thread, for what is read from a server. Keys are GDAL's own business, not rasterio's."""
    if not options:
        yield
        return
    with rasterio.Env(DummySession(), **options):
        yield


def borrow_dataset(key: DatasetKey, *, opened: Callable[[], Any] | None = None) -> Any:
    """This thread's open dataset; it stays owned by the cache, so do not close it or hand it to another thread.

    Args:
        key: Which.
        opened: Opens it where this thread has not; by path and driver if not given.
    """
    cache = getattr(_local, "cache", None)
    if cache is None:
        cache = _local.cache = _Cache()
        with _lock:
            _caches.add(cache)
    dataset = cache.get(key)
    if dataset is None or dataset.closed:
        dataset = cache[key] = open_dataset(key.path, key.driver) if opened is None else opened()
        while len(cache) > MAX_OPEN_PER_THREAD:
            cache.popitem(last=False)[1].close()
    cache.move_to_end(key)
    return dataset


def give_back(key: DatasetKey) -> None:
    """Close this thread's dataset, so that the next look opens it anew."""
    dataset = getattr(_local, "cache", {}).pop(key, None)
    if dataset is not None:
        dataset.close()


def limit_block_cache(nbytes: int = BLOCK_CACHE_BYTES) -> None:
    """Bound GDAL's cache of decoded blocks in this process, which is a twentieth of all memory unless told.

    The setting is GDAL's own and process-wide; it stays until the next one, or until the process ends.
    """
    global _block_cache_told  # noqa: PLW0603 - a property of the process, as GDAL's own setting is
    _block_cache_told = True
    # Not by an Env: a thread that leaves one that was opened inside it would bring its own setting back for all.
    set_gdal_config("GDAL_CACHEMAX", nbytes)


def decode_on(threads: int) -> None:
    """Let files on disk that are opened from now on decode the blocks of a window on so many threads, in this process.

    GDAL shares one pool of threads among all datasets.
    """
    global _decoding_threads  # noqa: PLW0603 - a property of the process, as GDAL's own settings are
    _decoding_threads = threads


def close_all() -> None:
    """Close the datasets of all threads of this process; call it when nobody reads. Reading again opens them again."""
    with _lock:
        caches = list(_caches)
    for cache in caches:
        while cache:
            cache.popitem()[1].close()


def innermost_message(error: BaseException) -> str:
    """The first cause in a chain of exceptions: what GDAL said, under rasterio's "see previous exception"."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error).strip().rstrip(".")


def _redacted(record: logging.LogRecord) -> bool:
    """Take signatures out of what rasterio logs: GDAL's messages hold whole addresses."""
    record.msg, record.args = redact(record.getMessage()), ()
    return True


for _name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "rasterio"]:
    logging.getLogger(_name).addFilter(_redacted)
