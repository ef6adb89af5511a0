"""Things that grow at their end and that no death of a process takes back: a file, or objects of a bucket."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.store.files import disk_full_as_error, fsync_path, write_all
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.bucket import Bucket

Fsync = Literal["record", "close", "never"]

_OBJECT_BYTES = 1 << 16
"""Size from which an object is left as it is and the next one begun: a batch of 150 to 200 tiles."""


class Log(Protocol):
    """Safe to share between threads, never between processes."""

    def append(self, line: bytes) -> None:
        """Add one line, its end included; it is kept when this returns.

        Raises:
            ResourceError: RS-001, no space; the log can be used again once there is some.
            InfrastructureError: ST-010 to ST-013.
            ValueError: The log is closed.
        """
        ...

    def flush(self) -> None:
        """Push everything to the disk itself, where there is one."""
        ...

    def close(self) -> None:
        """Flush, unless told never to, and close. Closing twice is fine."""
        ...


class FileLog:
    """A file of its own; every line is a single `write`.

    Args:
        path: Must not exist.
        fsync: When lines reach the disk itself. `close` outlives the death of the process; a power cut may cost the
            last of them.
    """

    def __init__(self, path: Path, *, fsync: Fsync) -> None:
        self.path = path
        self._fsync = fsync
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk_full_as_error(path.parent):
            self._fd = os.open(path, flags, 0o600)
        if fsync != "never":
            fsync_path(path.parent)
        self._lock = threading.Lock()
        self._torn = False

    def append(self, line: bytes) -> None:
        """See `Log`."""
        with self._lock:
            if self._fd < 0:
                raise ValueError(_CLOSED)
            # A line that broke off has no end: begin a new one, or both would be lost.
            data = b"\n" + line if self._torn else line
            self._torn = True
            with disk_full_as_error(self.path.parent, needed_bytes=len(data)):
                reached("before-append")
                write_all(self._fd, data)
                reached("after-append")
                if self._fsync == "record":
                    os.fsync(self._fd)
            self._torn = False

    def flush(self) -> None:
        """See `Log`."""
        with self._lock, disk_full_as_error(self.path.parent):
            if self._fd >= 0:
                reached("before-fsync")
                os.fsync(self._fd)
                reached("after-fsync")

    def close(self) -> None:
        """See `Log`."""
        if self._fsync != "never":
            self.flush()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


class ObjectLog:
    """Objects of its own, one after the other; the last one is replaced by itself with more lines until it is full.

    Lines that come while a request is on its way share the next one, so a slow store makes batches, not queues.

    Args:
        bucket: Where.
        key: Of the first object, with its ending; the others get a number before that.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket = bucket
        self._stem, _, self._ending = key.rpartition(".")
        self._number = 0
        self._sent = b""
        """What the object on its way to be full holds."""
        self._waiting: list[bytes] = []
        self._guard = threading.Lock()
        """Of `_waiting` and `_closed`."""
        self._sending = threading.Lock()
        self._closed = False

    def append(self, line: bytes) -> None:
        """See `Log`."""
        with self._guard:
            if self._closed:
                raise ValueError(_CLOSED)
            self._waiting.append(line)
        with self._sending:
            self._send()

    def flush(self) -> None:
        """Nothing: what was appended is there."""

    def close(self) -> None:
        """See `Log`."""
        with self._guard:
            self._closed = True

    def _send(self) -> None:
        """Everything that waits; nothing where another thread has sent it. What fails waits for the next time."""
        with self._guard:
            lines = list(self._waiting)
        if not lines:
            return
        data = self._sent + b"".join(lines)
        reached("before-append")
        self._bucket.put(f"{self._stem}-{self._number:04d}.{self._ending}", data)
        for _ in lines:
            reached("after-append")
        with self._guard:
            del self._waiting[: len(lines)]
        full = len(data) >= _OBJECT_BYTES
        self._number += full
        self._sent = b"" if full else data


_CLOSED = "append to a closed ledger"
