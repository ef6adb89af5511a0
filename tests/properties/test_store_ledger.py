"""Laws of the ledger: no damage invents or alters a record, and order means nothing."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.store import LedgerWriter, TileRecord, merge_records, scan_ledger
from pipeline.store.ledger import decode_record, encode_record

HASHES = st.integers(0, 3).map(lambda n: f"{n:064x}")


@st.composite
def records(draw: st.DrawFn) -> TileRecord:
    written = draw(st.booleans())
    return TileRecord(
        tile=draw(st.integers(0, 5)),
        kind="written" if written else "empty",
        mask_sha256=draw(HASHES) if written else None,
        prob_sha256=draw(st.none() | HASHES) if written else None,
        plan_id=draw(st.text(max_size=5)),
        seconds=draw(st.floats(0, 1e6)),
        valid_px=draw(st.integers(0, 2**40)),
        class_px=draw(st.none() | st.lists(st.integers(0, 2**40), max_size=4).map(tuple)),
        attempt=draw(st.integers(1, 3)),
    )


@given(records())
def test_a_line_round_trips(record: TileRecord) -> None:
    line = encode_record(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_record(line[:-1]) == record


@given(st.lists(records(), max_size=12), st.randoms(use_true_random=False))
def test_order_and_repetition_mean_nothing(given_records: list[TileRecord], shuffle: random.Random) -> None:
    mixed = [*given_records, *given_records[:3]]
    shuffle.shuffle(mixed)
    one, other = merge_records(given_records), merge_records(mixed)
    assert {t: r.pixels for t, r in one.records.items()} == {t: r.pixels for t, r in other.records.items()}
    assert one.conflicts == other.conflicts
    assert one.attempts == other.attempts
    assert set(one.records) | set(one.conflicts) == {r.tile for r in given_records}
    assert not set(one.records) & set(one.conflicts)


@given(st.lists(records(), max_size=12))
def test_a_next_attempt_always_settles(given_records: list[TileRecord]) -> None:
    scan = merge_records(given_records)
    again = [
        TileRecord(tile=tile, kind="empty", mask_sha256=None, plan_id="p", seconds=0.0, valid_px=0, attempt=attempt + 1)
        for tile, attempt in scan.attempts.items()
    ]
    assert merge_records([*again, *given_records]).records == {r.tile: r for r in again}


def test_a22_two_thousand_ways_to_damage_a_ledger() -> None:
    rng = random.Random(22)
    base = TileRecord(
        tile=0, kind="written", mask_sha256="ab" * 32, plan_id="p", seconds=1.5, valid_px=9, class_px=(4, 5)
    )
    known = {tile: replace(base, tile=tile) for tile in range(12)}
    with tempfile.TemporaryDirectory() as folder:
        with LedgerWriter(Path(folder), fsync="never") as writer:
            for record in known.values():
                writer.append(record)
        good = (Path(folder) / writer.name).read_bytes()
        for case in range(2000):
            data = bytearray(good)
            kind = case % 5
            if kind == 0:
                data = data[: rng.randrange(len(data))]
            elif kind == 1:
                data += rng.randbytes(rng.randrange(1, 80))
            elif kind == 2:
                for _ in range(rng.randrange(1, 5)):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            elif kind == 3:
                start = rng.randrange(len(data))
                data[start : start + rng.randrange(1, 300)] = rng.randbytes(rng.randrange(200))
            else:
                cut = rng.randrange(len(data))
                data = data[cut:] + data[:cut]
            (Path(folder) / writer.name).write_bytes(bytes(data))
            scan = scan_ledger(Path(folder))
            assert all(known[tile] == record for tile, record in scan.records.items()), f"case {case} invents a record"
            lost = len(known) - len(scan.records)
            assert lost == 0 or scan.dropped_lines > 0 or kind == 0, f"case {case} loses without a word"
            if kind == 1:
                assert lost == 0
