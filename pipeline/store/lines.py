"""Append-only files of checksummed lines, one file per writer: what outlives any death of the process.

A line is JSON, a tab, and the CRC-32 of the JSON as 8 hex digits. A torn or damaged line is known as such and dropped.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import zlib
from typing import TYPE_CHECKING, Literal, Self

from pipeline.store.files import disk_full_as_error, fsync_path, private_folder, write_all
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Fsync = Literal["record", "close", "never"]


class LineWriter:
    """Appends lines to a file of its own; safe to share between threads, never between processes.

    Args:
        folder: Where the file lies; made if absent.
        fsync: When lines reach the disk itself. `close` outlives the death of the process; a power cut may cost the
            last of them.
    """

    def __init__(self, folder: Path, *, fsync: Fsync = "close") -> None:
        self._folder = private_folder(folder)
        self._fsync = fsync
        host = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname())[:80]
        self.path = folder / f"{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk_full_as_error(folder):
            self._fd = os.open(self.path, flags, 0o600)
        if fsync != "never":
            fsync_path(folder)
        self._lock = threading.Lock()
        self._torn = False

    def write(self, body: bytes) -> None:
        """Write one line, sealed, with a single `write`.

        Raises:
            ResourceError: RS-001, no space; the writer can be used again once there is some.
            ValueError: The writer is closed.
        """
        line = seal(body)
        with self._lock:
            if self._fd < 0:
                msg = "append to a closed ledger"
                raise ValueError(msg)
            # A line that broke off has no end: begin a new one, or both would be lost.
            data = b"\n" + line if self._torn else line
            self._torn = True
            with disk_full_as_error(self._folder, needed_bytes=len(data)):
                reached("before-append")
                write_all(self._fd, data)
                reached("after-append")
                if self._fsync == "record":
                    os.fsync(self._fd)
            self._torn = False

    def flush(self) -> None:
        """Push everything to the disk itself."""
        with self._lock, disk_full_as_error(self._folder):
            if self._fd >= 0:
                reached("before-fsync")
                os.fsync(self._fd)
                reached("after-fsync")

    def close(self) -> None:
        """Flush unless told never to, and close. Closing twice is fine."""
        if self._fsync != "never":
            self.flush()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def seal(body: bytes) -> bytes:
    """A line with its checksum and its end."""
    return body + b"\t%08x\n" % zlib.crc32(body)


def unseal(line: bytes) -> bytes | None:
    """What was sealed, of a line without its end; None if it is torn or damaged."""
    body, tab, checksum = line.rpartition(b"\t")
    return body if tab and checksum == b"%08x" % zlib.crc32(body) else None


def iter_lines(folder: Path) -> Iterator[bytes | None]:
    """What every writer of a folder has sealed, None for each line that is torn or damaged; nothing if it is absent."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if line:
                yield unseal(line)
