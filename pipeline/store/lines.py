"""Append-only logs of checksummed lines, one per writer: what outlives any death of the process.

A line is JSON, a tab, and the CRC-32 of the JSON as 8 hex digits. A torn or damaged line is known as such and dropped.
"""

from __future__ import annotations

import os
import secrets
import socket
import zlib
from typing import TYPE_CHECKING, Self

from pipeline.store.place import as_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.store.logs import Fsync
    from pipeline.store.place import Place


class LineWriter:
    """Appends lines to a log of its own; safe to share between threads, never between processes.

    Args:
        where: The folder, made if absent, or place in which it lies.
        fsync: When lines reach the disk itself; see `FileLog`.
    """

    def __init__(self, where: Path | Place, *, fsync: Fsync = "close") -> None:
        host = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname())[:80]
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._log = as_place(where).open_log(self.name, fsync=fsync)

    def write(self, body: bytes) -> None:
        """Write one line, sealed; it is kept when this returns.

        Raises:
            ResourceError: RS-001, no space; the writer can be used again once there is some.
            InfrastructureError: ST-010 to ST-013.
            ValueError: The writer is closed.
        """
        self._log.append(seal(body))

    def flush(self) -> None:
        """Push everything to the disk itself."""
        self._log.flush()

    def close(self) -> None:
        """Flush unless told never to, and close. Closing twice is fine."""
        self._log.close()

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


def iter_lines(where: Path | Place) -> Iterator[bytes | None]:
    """What every writer of a place has sealed, None for each line that is torn or damaged; nothing if it is absent."""
    for data in as_place(where).read_all(".jsonl"):
        for line in data.split(b"\n"):
            if line:
                yield unseal(line)
