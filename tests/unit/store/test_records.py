"""`TileRecords` behaves as a dict of records does, and its memory does not grow with what ends."""

from __future__ import annotations

import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import TileRecord, TileRecords

_PLAN = "0123456789abcdef"
_TILES, _CLASSES = 6, 3

_hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def _records(draw: st.DrawFn) -> TileRecord:
    mask = draw(st.none() | _hashes)
    counts = st.tuples(*[st.integers(0, 2**40)] * _CLASSES)
    return TileRecord(
        tile=draw(st.integers(0, _TILES - 1)),
        kind="empty" if mask is None else "written",
        mask_sha256=mask,
        prob_sha256=None if mask is None else draw(st.none() | _hashes),
        plan_id=_PLAN,
        seconds=draw(st.floats(0, 1e6)),
        valid_px=draw(st.integers(0, 2**40)),
        class_px=draw(st.none() | counts),
        splits=draw(st.integers(0, 100)),
        attempt=draw(st.integers(1, 100)),
    )


@given(st.lists(_records() | st.integers(0, _TILES - 1)))
def test_as_a_dict(steps: list[TileRecord | int]) -> None:
    """After any records kept and forgotten, it holds what a dict holds, in the order of tiles; so does its copy."""
    ours, theirs = _table(_TILES), {}
    for step in steps:
        if isinstance(step, TileRecord):
            ours[step.tile] = theirs[step.tile] = step
        else:
            assert ours.pop(step, None) == theirs.pop(step, None)
        assert len(ours) == len(theirs)
    in_order = {tile: theirs[tile] for tile in sorted(theirs)}
    for table in (ours, pickle.loads(pickle.dumps(ours))):
        assert list(table.items()) == list(in_order.items())
        assert [tile in table for tile in range(-1, _TILES + 1)] == [tile in theirs for tile in range(-1, _TILES + 1)]


@pytest.mark.parametrize("tile", [-1, 2, _TILES])
def test_missing(tile: int) -> None:
    """A tile without a record has none, whether the plan has such a tile or not."""
    table = _table(_TILES)
    table[1] = _record(1)
    with pytest.raises(KeyError):
        table[tile]
    with pytest.raises(KeyError):
        del table[tile]
    assert list(table) == [1]


def test_other_plans_are_refused() -> None:
    """A record of another plan, or of another tile, never takes a tile's place."""
    table = _table(_TILES)
    with pytest.raises(ValueError, match="of plan 0123456789abcdef is not"):
        table[2] = _record(1)
    with pytest.raises(ValueError, match="is not one of 1 of ffff"):
        TileRecords(plan_id="ffff", num_tiles=_TILES, num_classes=_CLASSES)[1] = _record(1)


def test_memory_is_taken_at_once() -> None:
    """Ten thousand records that come in take no memory beyond that of the empty table."""
    count = 10_000
    table = _table(count)
    tracemalloc.start()
    try:
        for tile in range(count):
            table[tile] = _record(tile)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == count
    assert grown < count  # a dict of them takes five hundred times that


def _table(num_tiles: int) -> TileRecords:
    return TileRecords(plan_id=_PLAN, num_tiles=num_tiles, num_classes=_CLASSES)


def _record(tile: int) -> TileRecord:
    return TileRecord(
        tile=tile,
        kind="written",
        mask_sha256=f"{tile:064x}",
        plan_id=_PLAN,
        seconds=0.5,
        valid_px=tile,
        class_px=(tile, 0, 0),
    )
