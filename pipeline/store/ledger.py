"""What is done: append-only, checksummed records, one file per writer. The truth of a run is their union.

A line is a record as JSON, a tab, and the CRC-32 of the JSON as 8 hex digits. A torn or damaged line is dropped and
counted, and its tile counts as not done. Order in time is never used (clocks differ between machines): the record
with the highest `attempt` speaks for a tile. Equal records of that attempt are duplicates and harmless; if they
disagree about pixels, nobody knows which writer came last, so the tile counts as not done and is computed once more
under the next attempt.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pipeline.store.files import disk_full_as_error, fsync_path, private_folder, write_all
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Fsync = Literal["record", "close", "never"]
_HEX = frozenset("0123456789abcdef")
_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TileRecord:
    """One tile, finished."""

    tile: int
    """Index of the tile in the plan, row-major."""
    kind: Literal["written", "empty"]
    """`empty`: no valid pixel, nothing was stored."""
    mask_sha256: str | None
    """SHA-256 of the mask's bytes; None when empty."""
    prob_sha256: str | None = None
    """SHA-256 of the probabilities' bytes; None when empty or not kept."""
    plan_id: str
    """Digest of the frozen plan that the tile belongs to."""
    seconds: float
    """Wall time of the tile on its worker."""
    valid_px: int
    """Pixels of the core with a class."""
    class_px: tuple[int, ...] | None = None
    """Pixels per class, in order of class values; None where they were not counted."""
    splits: int = 0
    """Patches that were cut in two because a device's memory did not suffice for them whole."""
    attempt: int = 1
    """1 for the first time; the highest attempt speaks for the tile."""

    def __post_init__(self) -> None:
        if (self.kind == "written") != (self.mask_sha256 is not None):
            msg = f"a written tile has a hash and an empty one has none, got {self.kind} and {self.mask_sha256}"
            raise ValueError(msg)

    @property
    def pixels(self) -> tuple[object, ...]:
        """What two records of one tile must agree about."""
        return self.kind, self.mask_sha256, self.prob_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerScan:
    """Everything a ledger says."""

    records: dict[int, TileRecord]
    """Tile -> the record that speaks for it; tiles in conflict are left out."""
    attempts: dict[int, int]
    """Tile -> highest attempt seen, conflicts included; a recomputation uses the next one."""
    conflicts: tuple[int, ...]
    """Tiles whose records of the highest attempt disagree about pixels."""
    dropped_lines: int
    """Torn or damaged lines."""


class LedgerWriter:
    """Appends records to a file of its own; safe to share between threads, never between processes.

    Args:
        folder: The ledger's folder; made if absent.
        fsync: When records reach the disk itself. `close` outlives the death of the process, and a power cut costs
            at worst some tiles: their hashes no longer match, and they are computed again.
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

    def append(self, record: TileRecord) -> None:
        """Write one record with a single `write`.

        Raises:
            ResourceError: RS-001, no space; the writer can be used again once there is some.
            ValueError: The writer is closed.
        """
        line = encode_record(record)
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


def encode_record(record: TileRecord) -> bytes:
    """One line of a ledger, its end included."""
    body = json.dumps(asdict(record), separators=(",", ":")).encode()
    return body + b"\t%08x\n" % zlib.crc32(body)


def decode_record(line: bytes) -> TileRecord | None:
    """The record of one line without its end; None if the line is torn or damaged."""
    body, tab, checksum = line.rpartition(b"\t")
    if not tab or checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        fields: dict[str, Any] = json.loads(body)
        counts = fields.get("class_px")
        record = TileRecord(**{**fields, "class_px": None if counts is None else tuple(counts)})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None  # a valid checksum of something that no version of ours writes
    return record if _plausible(record) else None


def merge_records(records: Iterable[TileRecord], *, dropped_lines: int = 0) -> LedgerScan:
    """Apply the rule of the module's head to records in any order."""
    best: dict[int, TileRecord] = {}
    conflicts: set[int] = set()
    for record in records:
        known = best.get(record.tile)
        if known is None or record.attempt > known.attempt:
            best[record.tile] = record
            conflicts.discard(record.tile)
        elif record.attempt == known.attempt and record.pixels != known.pixels:
            conflicts.add(record.tile)
    return LedgerScan(
        records={tile: best[tile] for tile in sorted(best) if tile not in conflicts},
        attempts={tile: record.attempt for tile, record in best.items()},
        conflicts=tuple(sorted(conflicts)),
        dropped_lines=dropped_lines,
    )


def scan_ledger(folder: Path, *, plan_id: str | None = None) -> LedgerScan:
    """Read all files of a ledger; an absent folder is an empty ledger.

    Args:
        folder: The ledger's folder.
        plan_id: Only records of this plan count; None takes all.
    """
    kept: list[TileRecord] = []
    dropped = 0
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if not line:
                continue
            record = decode_record(line)
            if record is None:
                dropped += 1
            elif plan_id is None or record.plan_id == plan_id:
                kept.append(record)
    return merge_records(kept, dropped_lines=dropped)


def read_ledger(folder: Path, *, plan_id: str | None = None) -> dict[int, TileRecord]:
    """Tile -> record of every finished tile; `scan_ledger` tells what was dropped."""
    return scan_ledger(folder, plan_id=plan_id).records


def _plausible(record: TileRecord) -> bool:
    integers = (record.tile, record.valid_px, record.attempt, *(record.class_px or ()))
    hashes = (h for h in (record.mask_sha256, record.prob_sha256) if h is not None)
    return (
        all(type(n) is int and n >= 0 for n in integers)
        and all(isinstance(h, str) and len(h) == _SHA256_DIGITS and set(h) <= _HEX for h in hashes)
        and record.kind in {"written", "empty"}
        and isinstance(record.plan_id, str)
    )
