"""The ledger: union of files, torn lines, conflicts."""

from __future__ import annotations

import multiprocessing
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ResourceError, UsageError
from pipeline.store import LedgerWriter, TileRecord, merge_records, read_ledger, scan_ledger
from pipeline.store.ledger import decode_record, encode_record

from .helpers import tiny_disk

HASH = "ab" * 32


def record(tile: int = 0, **changes: Any) -> TileRecord:
    fields: dict[str, Any] = {
        "tile": tile,
        "kind": "written",
        "mask_sha256": HASH,
        "plan_id": "p1",
        "seconds": 0.25,
        "valid_px": 10,
        "class_px": (4, 6),
    }
    return TileRecord(**{**fields, **changes})


def test_records_of_several_writers_are_united(tmp_path: Path) -> None:
    for start in (0, 10, 20):
        with LedgerWriter(tmp_path / "ledger") as writer:
            for tile in range(start, start + 10):
                writer.append(record(tile))
    empty = record(30, kind="empty", mask_sha256=None, valid_px=0, class_px=None)
    with LedgerWriter(tmp_path / "ledger") as writer:
        writer.append(empty)
    found = read_ledger(tmp_path / "ledger")
    assert found == {**{tile: record(tile) for tile in range(30)}, 30: empty}
    assert len(list((tmp_path / "ledger").glob("*.jsonl"))) == 4


def test_no_folder_is_an_empty_ledger(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "none") == {}


def test_a22_a_torn_last_line_is_dropped_and_counted(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path) as writer:
        writer.append(record(0))
        writer.append(record(1))
    data = (tmp_path / writer.name).read_bytes()
    second = data.index(b"\n") + 1
    # The line's end is no part of the record: losing only that loses nothing.
    for cut in range(second + 1, len(data) - 1):
        (tmp_path / writer.name).write_bytes(data[:cut])
        scan = scan_ledger(tmp_path)
        assert set(scan.records) == {0}, cut
        assert scan.dropped_lines == 1


def test_a22_every_flipped_bit_drops_its_record_only(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path) as writer:
        for tile in range(3):
            writer.append(record(tile))
    data = (tmp_path / writer.name).read_bytes()
    middle = range(data.index(b"\n") + 1, data.rindex(b"\n", 0, -1))
    for position in middle:
        for bit in range(8):
            bad = bytearray(data)
            bad[position] ^= 1 << bit
            (tmp_path / writer.name).write_bytes(bytes(bad))
            scan = scan_ledger(tmp_path)
            assert set(scan.records) == {0, 2}
            assert all(scan.records[t] == record(t) for t in scan.records)


def test_duplicates_are_harmless_and_may_differ_in_time(tmp_path: Path) -> None:
    scan = merge_records([record(1, seconds=1.0), record(1, seconds=9.0)])
    assert scan.records[1].pixels == record(1).pixels
    assert scan.conflicts == ()


@pytest.mark.parametrize(
    "other",
    [{"mask_sha256": "cd" * 32}, {"prob_sha256": HASH}, {"kind": "empty", "mask_sha256": None}],
)
def test_records_that_disagree_make_the_tile_not_done(other: dict[str, Any]) -> None:
    for pair in ([record(1), record(1, **other)], [record(1, **other), record(1), record(1)]):
        scan = merge_records([*pair, record(2)])
        assert set(scan.records) == {2}
        assert scan.conflicts == (1,)
        assert scan.attempts == {1: 1, 2: 1}


def test_the_next_attempt_settles_a_conflict_in_any_order() -> None:
    later = record(1, mask_sha256="ef" * 32, attempt=2)
    history = [record(1), record(1, mask_sha256="cd" * 32), later]
    for order in (history, history[::-1], [history[0], later, history[1]]):
        scan = merge_records(order)
        assert scan.records == {1: later}
        assert scan.conflicts == ()
        assert scan.attempts == {1: 2}


def test_records_of_another_plan_do_not_count(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path) as writer:
        writer.append(record(0, plan_id="old", mask_sha256="cd" * 32))
        writer.append(record(0))
        writer.append(record(1, plan_id="old"))
    assert read_ledger(tmp_path, plan_id="p1") == {0: record(0)}


def test_threads_share_a_writer(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, fsync="never") as writer:

        def work(start: int) -> None:
            for tile in range(start, 400, 4):
                writer.append(record(tile))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    scan = scan_ledger(tmp_path)
    assert len(scan.records) == 400
    assert scan.dropped_lines == 0


def _append_and_die(folder: str) -> None:
    writer = LedgerWriter(Path(folder))
    for tile in range(50):
        writer.append(record(tile))
    os.kill(os.getpid(), 9)


def test_a2_records_outlive_a_killed_writer(tmp_path: Path) -> None:
    job = multiprocessing.get_context("spawn").Process(target=_append_and_die, args=(str(tmp_path),))
    job.start()
    job.join()
    assert job.exitcode == -9
    assert set(read_ledger(tmp_path)) == set(range(50))


def test_fsync_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    counts = {}
    for policy in ("record", "close", "never"):
        synced.clear()
        with LedgerWriter(tmp_path / policy, fsync=policy) as writer:
            for tile in range(5):
                writer.append(record(tile))
        counts[policy] = len(synced)
    assert counts == {"record": 7, "close": 2, "never": 0}  # the folder once, each record, once at the end


def test_t15_ledger_files_are_private_and_never_reused(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path / "ledger") as one, LedgerWriter(tmp_path / "ledger") as two:
        assert one.name != two.name
    assert stat.S_IMODE((tmp_path / "ledger" / one.name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "ledger")
    with pytest.raises(UsageError, match="a link or a file"):
        LedgerWriter(tmp_path / "link")


def test_append_after_close_fails(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append(record())


def test_b3_a_full_disk_tears_one_line_at_most_and_the_writer_goes_on(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 64 * 1024) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 40 * 1024)
        writer = LedgerWriter(disk / "ledger")
        done = 0
        failure: ResourceError | None = None
        while failure is None:
            try:
                writer.append(record(done))
                done += 1
            except ResourceError as error:
                failure = error
        assert failure.code == "RS-001"
        assert 10 < done < 1000
        ballast.unlink()
        writer.append(record(5000))
        writer.close()
        scan = scan_ledger(disk / "ledger")
    assert set(scan.records) == {*range(done), 5000}
    assert scan.dropped_lines <= 1


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b"null", b'"text"', b"{", b'{"tile": 1, "unknown": 2}'],
)
def test_lines_with_a_good_checksum_but_no_record_are_dropped(body: bytes) -> None:
    import zlib

    assert decode_record(body + b"\t%08x" % zlib.crc32(body)) is None


@pytest.mark.parametrize(("name", "value"), [("kind", []), ("kind", {}), ("splits", "1"), ("seconds", None)])
def test_fields_of_another_type_make_no_record(name: str, value: Any) -> None:
    import json
    import zlib

    body = json.dumps({**json.loads(encode_record(record()).rpartition(b"\t")[0]), name: value}).encode()
    assert decode_record(body + b"\t%08x" % zlib.crc32(body)) is None


@pytest.mark.parametrize(
    "changes",
    [{"tile": -1}, {"tile": True}, {"mask_sha256": "xyz"}, {"attempt": 1.5}, {"class_px": (1, -1)}, {"plan_id": 3}],
)
def test_implausible_records_are_dropped(changes: dict[str, Any]) -> None:
    assert decode_record(encode_record(record(**changes))[:-1]) is None


def test_a_written_tile_has_a_hash() -> None:
    with pytest.raises(ValueError, match="hash"):
        record(mask_sha256=None)
    with pytest.raises(ValueError, match="hash"):
        record(kind="empty")
