"""What is done: append-only, checksummed records, one log per writer. The truth of a run is their union.

A torn or damaged line (`lines.py`) is dropped and counted, and its tile counts as not done. Order in time is never used
(clocks differ between machines): the record with the highest `attempt` speaks for a tile. Equal records of that attempt
are duplicates and harmless; if they disagree about pixels, nobody knows which writer came last, so the tile counts as
not done and is computed once more under the next attempt.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.store.lines import LineWriter, iter_lines, seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pipeline.store.place import Place

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


class LedgerWriter(LineWriter):
    """Appends records; a power cut costs at worst some tiles: their hashes no longer match, and they come again."""

    def append(self, record: TileRecord) -> None:
        """Write one record; see `LineWriter.write`."""
        self.write(_body(record))


def encode_record(record: TileRecord) -> bytes:
    """One line of a ledger, its end included."""
    return seal(_body(record))


def decode_record(line: bytes) -> TileRecord | None:
    """The record of one line without its end; None if the line is torn or damaged."""
    body = unseal(line)
    return None if body is None else _record(body)


def _body(record: TileRecord) -> bytes:
    return json.dumps(asdict(record), separators=(",", ":")).encode()


def _record(body: bytes) -> TileRecord | None:
    """None for a valid checksum of something that no version of ours writes."""
    try:
        fields: dict[str, Any] = json.loads(body)
        counts = fields.get("class_px")
        record = TileRecord(**{**fields, "class_px": None if counts is None else tuple(counts)})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
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


def scan_ledger(where: Path | Place, *, plan_id: str | None = None) -> LedgerScan:
    """Read all logs of a ledger; an absent folder is an empty ledger.

    Args:
        where: The ledger's folder or place.
        plan_id: Only records of this plan count; None takes all.
    """
    kept: list[TileRecord] = []
    dropped = 0
    for body in iter_lines(where):
        record = None if body is None else _record(body)
        if record is None:
            dropped += 1
        elif plan_id is None or record.plan_id == plan_id:
            kept.append(record)
    return merge_records(kept, dropped_lines=dropped)


def read_ledger(where: Path | Place, *, plan_id: str | None = None) -> dict[int, TileRecord]:
    """Tile -> record of every finished tile; `scan_ledger` tells what was dropped."""
    return scan_ledger(where, plan_id=plan_id).records


def _plausible(record: TileRecord) -> bool:
    integers = (record.tile, record.valid_px, record.attempt, record.splits, *(record.class_px or ()))
    hashes = (h for h in (record.mask_sha256, record.prob_sha256) if h is not None)
    return (
        all(type(n) is int and n >= 0 for n in integers)
        and all(isinstance(h, str) and len(h) == _SHA256_DIGITS and set(h) <= _HEX for h in hashes)
        and record.kind in ("written", "empty")
        and type(record.seconds) in (int, float)
        and isinstance(record.plan_id, str)
    )
