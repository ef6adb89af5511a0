"""Ledger, tiles and lock against plain dictionaries: whatever happens to them, a resumption knows what is missing."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.errors import OutputError
from pipeline.grid import iter_windows
from pipeline.run.scratch import digest_of
from pipeline.store import LedgerWriter, RunLock, TileRecord, TileStore, scan_ledger, sha256_array
from pipeline.store import lock as lock_module

SHAPE, TILE = (60, 90), (32, 32)
WINDOWS = list(iter_windows(SHAPE, TILE))
EMPTY = len(WINDOWS) - 1
"""The tile without a valid pixel."""
TILES = st.integers(0, EMPTY)
WRITERS = st.integers(0, 1)
VARIANTS = st.sampled_from([0, 0, 0, 1])
"""1: other pixels, as of a machine that computes otherwise."""

Line = tuple[int, int, int]
"""(tile, attempt, variant) of a record."""


def pixels(tile: int, variant: int) -> np.ndarray:
    return np.random.default_rng(10 * tile + variant).integers(0, 9, WINDOWS[tile].shape, np.uint8)


def record(line: Line) -> TileRecord:
    tile, attempt, variant = line
    empty = tile == EMPTY
    return TileRecord(
        tile=tile,
        kind="empty" if empty else "written",
        mask_sha256=None if empty else sha256_array(pixels(tile, variant)),
        plan_id="plan",
        seconds=0.0,
        valid_px=0,
        attempt=attempt,
    )


class Run(RuleBasedStateMachine):
    """Two writers of one run, its lock, and what befalls them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.ledger = self.folder / "ledger"
        self.store = TileStore.create(self.folder / "store", shape=SHAPE, dtype="uint8", fill=255, shard_hw=TILE)
        self.lines: dict[Path, list[Line]] = defaultdict(list)
        self.torn = 0
        self.stored: dict[int, int] = {}
        """Tile -> variant that lies in the store."""
        self.flipped: set[int] = set()
        self.time = 0.0
        self.machine = 0
        self.lock = self._new_lock()

    @initialize()
    def begin(self) -> None:
        with self._here():
            self.lock.acquire()
        self.writers = [LedgerWriter(self.ledger), LedgerWriter(self.ledger)]

    def teardown(self) -> None:
        self.lock.release()
        for writer in self.writers:
            writer.close()
        shutil.rmtree(self.folder)

    # what a run does

    @rule(writer=WRITERS, tile=TILES, variant=VARIANTS, late=st.booleans())
    def compute(self, writer: int, tile: int, variant: int, late: bool) -> None:  # noqa: FBT001
        """A tile is written and recorded; `late` by a worker that was given up and comes with the same attempt."""
        highest = self._attempts().get(tile, 0)
        self._write(tile, variant)
        self._append(writer, (tile, max(1, highest) if late else highest + 1, variant))

    @rule(tile=TILES, variant=VARIANTS)
    def written_and_killed(self, tile: int, variant: int) -> None:
        self._write(tile, variant)

    @precondition(lambda self: any(self.lines.values()))
    @rule(writer=WRITERS, data=st.data())
    def duplicate(self, writer: int, data: st.DataObject) -> None:
        self._append(writer, data.draw(st.sampled_from(sorted(itertools.chain(*self.lines.values())))))

    @rule()
    def resume(self) -> None:
        """What is missing is computed as the client asks for it; then everything is there, and right."""
        scan = scan_ledger(self.ledger)
        damaged = self.store.find_damaged(WINDOWS, {tile: digest_of(r) for tile, r in scan.records.items()})
        for tile in sorted(set(range(len(WINDOWS))) - set(scan.records) | set(damaged)):
            self._write(tile, 0)
            self._append(0, (tile, scan.attempts.get(tile, 0) + 1, 0))
        assert self._missing() == set()
        assert set(scan_ledger(self.ledger).records) == set(range(len(WINDOWS)))

    # what befalls it

    @precondition(lambda self: any(self.lines.values()))
    @rule(writer=WRITERS, lost=st.integers(1, 60))
    def torn_line(self, writer: int, lost: int) -> None:
        """The writer dies in the middle of its last line, and another one takes its place."""
        path = self.ledger / self.writers[writer].name
        self.writers[writer].close()
        if self.lines[path]:
            path.write_bytes(path.read_bytes()[: -1 - lost])
            self.lines[path].pop()
            self.torn += 1
        self.writers[writer] = LedgerWriter(self.ledger)

    @precondition(lambda self: set(self.stored) - self.flipped)
    @rule(data=st.data())
    def bit_flip(self, data: st.DataObject) -> None:
        tile = data.draw(st.sampled_from(sorted(set(self.stored) - self.flipped)))
        row, col = (WINDOWS[tile].row_off // TILE[0], WINDOWS[tile].col_off // TILE[1])
        shard = self.folder / "store" / "mask" / "c" / str(row) / str(col)
        content = bytearray(shard.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        shard.write_bytes(content)
        self.flipped.add(tile)

    @rule()
    def reopen(self) -> None:
        for number, writer in enumerate(self.writers):
            writer.close()
            self.writers[number] = LedgerWriter(self.ledger)
        (self.folder / "store" / "mask" / "0.cafe.partial").write_bytes(b"half")
        self.store = TileStore.open(self.folder / "store")
        assert self.store.remove_partials() == 1

    @rule()
    def takeover(self) -> None:
        """This run belongs to a machine that sleeps: another one waits for two heartbeats, and has it."""
        self.machine += 1
        other = self._new_lock()
        with self._here():
            other.acquire()
        with contextlib.suppress(OutputError):
            self.lock.ensure_held()
            raise AssertionError
        self.lock.release()
        other.ensure_held()
        self.lock = other

    @rule()
    def nobody_joins(self) -> None:
        """A second run on a machine where the first one lives is refused."""
        with self._here(), contextlib.suppress(OutputError):
            self._new_lock().acquire()
            raise AssertionError
        self.lock.ensure_held()

    @invariant()
    def the_ledger_says_what_was_recorded(self) -> None:
        scan = scan_ledger(self.ledger)
        best, conflicts = self._best()
        assert {tile: (r.attempt, r.pixels) for tile, r in scan.records.items()} == {
            tile: (line[1], record(line).pixels) for tile, line in best.items()
        }
        assert set(scan.conflicts) == conflicts
        assert scan.attempts == self._attempts()
        assert scan.dropped_lines <= self.torn

    @invariant()
    def the_store_tells_what_is_damaged(self) -> None:
        scan = scan_ledger(self.ledger)
        damaged = self.store.find_damaged(WINDOWS, {tile: digest_of(r) for tile, r in scan.records.items()})
        assert set(damaged) | (set(range(len(WINDOWS))) - set(scan.records)) == self._missing()

    # the model

    def _attempts(self) -> dict[int, int]:
        attempts: dict[int, int] = {}
        for tile, attempt, _ in itertools.chain(*self.lines.values()):
            attempts[tile] = max(attempt, attempts.get(tile, 0))
        return attempts

    def _best(self) -> tuple[dict[int, Line], set[int]]:
        best: dict[int, Line] = {}
        conflicts = set()
        for tile, attempt in self._attempts().items():
            variants = {line[2] for line in itertools.chain(*self.lines.values()) if line[:2] == (tile, attempt)}
            if len(variants) > 1 and tile != EMPTY:
                conflicts.add(tile)
            else:
                best[tile] = (tile, attempt, min(variants))
        return best, conflicts

    def _missing(self) -> set[int]:
        best, _ = self._best()
        whole = {
            tile
            for tile, (_, _, variant) in best.items()
            if tile not in self.flipped and (tile == EMPTY or self.stored.get(tile) == variant)
        }
        return set(range(len(WINDOWS))) - whole

    def _write(self, tile: int, variant: int) -> None:
        if tile != EMPTY:
            self.store.write(WINDOWS[tile], pixels(tile, variant))
            self.stored[tile] = variant
            self.flipped.discard(tile)

    def _append(self, writer: int, line: Line) -> None:
        self.writers[writer].append(record(line))
        self.lines[self.ledger / self.writers[writer].name].append(line)

    def _here(self) -> contextlib.AbstractContextManager[object]:
        """On the machine that the run is on now."""
        return mock.patch.object(lock_module, "machine", return_value=f"machine {self.machine}")

    def _new_lock(self) -> RunLock:
        return RunLock(self.folder / "run", clock=lambda: self.time, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.mark.parametrize(("runs", "steps"), [(8, 20), pytest.param(200, 30, marks=pytest.mark.slow)])
def test_what_a_resumption_finds_is_what_was_done(runs: int, steps: int) -> None:
    run_state_machine_as_test(Run, settings=settings(max_examples=runs, stateful_step_count=steps, deadline=None))
