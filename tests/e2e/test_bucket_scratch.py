"""Unfinished tiles in a bucket: no disk in common, the same bytes, resumable from anywhere, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

import pipeline as sm
from pipeline.access import Access
from pipeline.bucket import Bucket
from pipeline.errors import InfrastructureError, OutputError
from pipeline.run.audit import audit
from pipeline.run.batch import batch
from pipeline.run.events import Notice, StageStarted
from pipeline.run.status import status_of
from pipeline.store import LedgerWriter, Prefix, TileRecord, TileStore, scan_ledger, sha256_array
from pipeline.store.object_lock import BucketLock
from tests.faults.commands import Starter
from tests.infra.fault_proxy import FaultProxy
from tests.infra.moto_server import BUCKET, KEYS, SECRET, moto_server, objects
from tests.scenes import save_threshold_model, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHAPE = (150, 170)
OPTIONS: dict[str, Any] = {"patch": 64, "tile": 1}
FLAGS = ("--patch", "64", "--tile", "1")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        yield address


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory, endpoint: str) -> Iterator[Starter]:
    """Starts commands that have the keys."""
    with Starter(tmp_path_factory.mktemp("commands"), {"OMP_NUM_THREADS": "1"}) as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, a model, and the result on disk."""
    base = tmp_path_factory.mktemp("bucket")
    write_scene(base / "scene.tif", smooth_values(2, SHAPE), nodata=0, names=("b0", "b1"))
    save_threshold_model(base / "model")
    sm.segment(base / "scene.tif", base / "model", base / "local", **OPTIONS)
    return base


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name.partition('[')[0]}"


def place_of(endpoint: str, address: str) -> Prefix:
    return Prefix(Bucket(BUCKET, Access(endpoint=endpoint)), address.removeprefix(f"s3://{BUCKET}/"))


def same(folder: Path, there: dict[str, bytes]) -> bool:
    names = ("mask.tif", "polygons.geojson", "preview.png")
    return all(there[name] == (folder / "local" / name).read_bytes() for name in names)


def test_nothing_but_the_scene_need_be_on_a_disk_that_workers_share(
    folder: Path, prefix: str, endpoint: str, tmp_path: Path
) -> None:
    """Two worker processes; tiles, ledger, plan and lock in the bucket while it runs, the results alone after it."""
    seen: list[dict[str, bytes]] = []

    def look(event: Any) -> None:
        if isinstance(event, StageStarted) and event.name == "mask":
            seen.append(objects(endpoint, prefix))

    more = {"endpoint": endpoint, "scratch": f"{prefix}/scratch", "workers": 2}
    made = sm.segment(folder / "scene.tif", folder / "model", f"{prefix}/out", listener=look, **more, **OPTIONS)
    assert not made.resumed
    (there,) = seen
    assert {"out/.scenemask/plan.json", "out/.scenemask/lock.json"} <= there.keys()
    (store,) = {name.split("/")[1] for name in there if name.startswith("scratch/")}
    kinds = {name.removeprefix(f"scratch/{store}/").partition("/")[0] for name in there if name.startswith("scratch/")}
    assert kinds == {"mask", "ledger", "picture"}
    left = objects(endpoint, prefix)
    assert same(folder, {name.removeprefix("out/"): data for name, data in left.items()})
    assert {name.partition("/")[0] for name in left} == {"out"}
    assert not any(name.startswith("out/.scenemask") for name in left)
    assert not any(SECRET.encode() in data for data in (*left.values(), *there.values()))
    assert sm.segment(folder / "scene.tif", folder / "model", f"{prefix}/out", endpoint=endpoint).resumed


@pytest.mark.parametrize("point", ["after-append:4", "after-shard:3", "begin-polygons:1", "after-remove:2"])
def test_a1_killed_here_and_continued_elsewhere(
    folder: Path, prefix: str, endpoint: str, starter: Starter, tmp_path: Path, point: str
) -> None:
    """The other machine has neither the first one's cache nor its disk; it is given `-o` alone."""
    prefix = f"{prefix}-{point.partition(':')[0]}"
    command = ["segment", folder / "scene.tif", "-m", folder / "model", "-o", f"{prefix}/out", *FLAGS]
    command += ["--endpoint", endpoint, "--scratch", f"{prefix}/scratch"]
    assert starter.run(command, kill_at=point).code == -signal.SIGKILL
    ended = point.startswith("after-remove")
    told = status_of(f"{prefix}/out", access=Access(endpoint=endpoint))
    assert told.holder is not None
    assert not told.holder.beats
    assert told.kind == ("complete" if ended else "unfinished")
    heard: list[Any] = []
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        run = {"endpoint": endpoint, "listener": heard.append}
        sm.segment(folder / "scene.tif", folder / "model", f"{prefix}/out", **run)
    if not ended:
        assert told.progress is not None
        assert told.progress.damaged == 0
        started = next(e for e in heard if isinstance(e, StageStarted) and e.name == "infer")
        assert started.done == told.progress.done >= 2
        assert told.progress.command is not None
        assert f"-o {prefix}/out" in told.progress.command
    left = objects(endpoint, prefix)
    assert same(folder, {name.removeprefix("out/"): data for name, data in left.items()})
    assert not [name for name in left if not name.startswith("out/") or ".scenemask" in name]
    assert not list((tmp_path / "cache").glob("scenemask/outputs/*"))
    assert status_of(f"{prefix}/out", access=Access(endpoint=endpoint)).kind == "complete"


def test_verify_and_status_of_a_bucket(folder: Path, prefix: str, endpoint: str, cli: Any) -> None:
    sm.segment(folder / "scene.tif", folder / "model", prefix, endpoint=endpoint, **OPTIONS)
    code, out, _ = cli("verify", prefix, "--endpoint", endpoint)
    assert code == 0
    assert "as they were written" in out
    code, out, _ = cli("status", prefix, "--endpoint", endpoint, "--json")
    assert code == 0
    assert json.loads(out)["files"]["mask.tif"] == (folder / "local" / "mask.tif").stat().st_size
    there = place_of(endpoint, prefix)
    whole = there.read("mask.tif") or b""
    with contextlib.suppress(ValueError):
        whole = bytes(b ^ (1 if i == len(whole) - 40 else 0) for i, b in enumerate(whole))
    there.write("mask.tif", whole)
    there.delete("preview.png")
    found = audit(prefix, access=Access(endpoint=endpoint))
    assert not found.whole
    assert found.files["mask.tif"] == "changed"
    assert found.files["preview.png"] == "missing"
    code, _, err = cli("verify", prefix, "--endpoint", endpoint)
    assert code == 5
    assert "OU-016" in err
    assert cli("status", f"{prefix}/nothing", "--endpoint", endpoint)[0] == 2
    assert cli("verify", f"{prefix}/nothing", "--endpoint", endpoint)[0] == 5


def test_results_in_a_folder_with_tiles_in_a_bucket(
    folder: Path, prefix: str, endpoint: str, starter: Starter, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["segment", folder / "scene.tif", "-m", folder / "model", "-o", out, *FLAGS, "--endpoint", endpoint]
    assert starter.run([*command, "--scratch", prefix], kill_at="after-append:5").code == -signal.SIGKILL
    told = status_of(out, access=Access(endpoint=endpoint))
    assert told.progress is not None
    assert told.progress.done >= 4
    assert objects(endpoint, prefix)
    result = starter.run(command)
    assert result.code == 0, result.err
    assert sha256(out / "mask.tif") == sha256(folder / "local" / "mask.tif")
    assert objects(endpoint, prefix) == {}
    assert not (out / ".scenemask").exists()


def test_a22_b10_damage_in_the_bucket_costs_tiles(
    folder: Path, prefix: str, endpoint: str, starter: Starter, tmp_path: Path
) -> None:
    """A shard with a flipped bit, one that is gone, a ledger object cut in a line: computed again, told, the same."""
    command = ["segment", folder / "scene.tif", "-m", folder / "model", "-o", tmp_path / "out", *FLAGS]
    command += ["--endpoint", endpoint, "--scratch", prefix]
    assert starter.run(command, kill_at="end-infer:1").code == -signal.SIGKILL
    there = objects(endpoint, prefix)
    shards = [name for name in there if "/mask/c/" in name]
    start = place_of(endpoint, prefix)
    bad = bytearray(there[shards[0]])
    bad[len(bad) // 3] ^= 4
    start.write(shards[0], bytes(bad))
    start.delete(shards[1])
    (ledger,) = [name for name in there if "/ledger/" in name]
    start.write(ledger, there[ledger][:-30])
    told = status_of(tmp_path / "out", access=Access(endpoint=endpoint))
    assert told.progress is not None
    assert told.progress.dropped_lines == 1
    assert told.progress.damaged in {1, 2}, "the torn record may be that of one of them"
    heard: list[Any] = []
    sm.segment(
        folder / "scene.tif", folder / "model", tmp_path / "out", endpoint=endpoint, listener=heard.append, **OPTIONS
    )
    assert any("computed again" in e.text for e in heard if isinstance(e, Notice))
    assert sha256(tmp_path / "out" / "mask.tif") == sha256(folder / "local" / "mask.tif")
    assert objects(endpoint, prefix) == {}


def test_a_bucket_that_fails_is_no_damage(folder: Path, prefix: str, endpoint: str, tmp_path: Path) -> None:
    """Code 8, tiles kept; what cannot be read for now must not be taken for damaged and computed again."""
    with FaultProxy(endpoint) as proxy:
        more = {"endpoint": proxy.endpoint, "scratch": prefix, "retries": 0, **OPTIONS}
        proxy.spoils = lambda method, path: method == "PUT" and "/mask/c/1" in path
        with pytest.raises(InfrastructureError, match="ST-011"):
            sm.segment(folder / "scene.tif", folder / "model", tmp_path / "out", **more)
        recorded = len(scan_ledger(_only_store(endpoint, prefix) / "ledger").records)
        assert recorded >= 1
        proxy.spoils = lambda method, path: method == "GET" and "/mask/c/" in path
        with pytest.raises(InfrastructureError, match="ST-011"):
            sm.segment(folder / "scene.tif", folder / "model", tmp_path / "out", **more)
        proxy.spoils = lambda _method, _path: False
        heard: list[Any] = []
        sm.segment(folder / "scene.tif", folder / "model", tmp_path / "out", listener=heard.append, **more)
    assert next(e for e in heard if isinstance(e, StageStarted) and e.name == "infer").done == recorded
    assert sha256(tmp_path / "out" / "mask.tif") == sha256(folder / "local" / "mask.tif")


def _only_store(endpoint: str, prefix: str) -> Prefix:
    (name,) = {name.partition("/")[0] for name in objects(endpoint, prefix)}
    return place_of(endpoint, f"{prefix}/{name}")


def test_the_ledger_makes_an_object_per_batch_of_records(prefix: str, endpoint: str) -> None:
    """Two writers, threads at once, a request that fails in between; every record is there once, in few objects."""
    import threading

    where = place_of(endpoint, prefix)

    def record(tile: int) -> TileRecord:
        digest = sha256_array(__import__("numpy").full(4, tile % 250, "u1"))
        return TileRecord(tile=tile, kind="written", mask_sha256=digest, plan_id="p" * 64, seconds=0.1, valid_px=4)

    with LedgerWriter(where) as one, LedgerWriter(where) as two:
        threads = [
            threading.Thread(target=lambda w=w, k=k: [w.append(record(t)) for t in range(k, 400, 8)])
            for k, w in enumerate([one, two] * 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with pytest.raises(ValueError, match="closed"):
        one.append(record(1))
    assert set(scan_ledger(where).records) == set(range(400))
    names = objects(endpoint, prefix)
    assert len(names) <= 6
    assert sum(data.count(b"\n") for data in names.values()) == 400


def test_a_request_that_fails_loses_no_record_of_others(prefix: str, endpoint: str) -> None:
    with FaultProxy(endpoint) as proxy:
        where = Prefix(Bucket(BUCKET, Access(endpoint=proxy.endpoint, retries=0)), prefix.rpartition("/")[2])
        writer = LedgerWriter(where)
        empty = {"kind": "empty", "mask_sha256": None, "plan_id": "p", "seconds": 0.1, "valid_px": 0}
        writer.append(TileRecord(tile=0, **empty))
        proxy.spoils = lambda method, _path: method == "PUT"
        with pytest.raises(InfrastructureError, match="ST-011"):
            writer.append(TileRecord(tile=1, **empty))
        proxy.spoils = lambda _method, _path: False
        writer.append(TileRecord(tile=2, **empty))
        assert set(scan_ledger(where).records) == {0, 1, 2}


def test_a_store_of_someone_else_is_not_removed(folder: Path, prefix: str, endpoint: str, tmp_path: Path) -> None:
    """Of the scratch prefix nothing is touched but the run's own."""
    place_of(endpoint, prefix).write("precious.txt", b"1")
    place_of(endpoint, f"{prefix}/scenemask-other/ledger").write("x.jsonl", b"2")
    more = {"endpoint": endpoint, "scratch": prefix, **OPTIONS}
    sm.segment(folder / "scene.tif", folder / "model", tmp_path / "out", **more)
    assert objects(endpoint, prefix) == {"precious.txt": b"1", "scenemask-other/ledger/x.jsonl": b"2"}


def test_b8_another_machine_does_not_join_in(folder: Path, prefix: str, endpoint: str) -> None:
    bucket = Bucket(BUCKET, Access(endpoint=endpoint))
    key = f"{prefix}/out/.scenemask/lock.json".removeprefix(f"s3://{BUCKET}/")
    more = {"endpoint": endpoint, "scratch": f"{prefix}/scratch", **OPTIONS}
    with BucketLock(bucket, key), pytest.raises(OutputError, match="OU-002"):
        sm.segment(folder / "scene.tif", folder / "model", f"{prefix}/out", **more)
    assert objects(endpoint, prefix) == {}


def test_b8_what_another_machine_begins_before_this_one_has_the_lock_is_continued(
    folder: Path, prefix: str, endpoint: str, starter: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one has looked, and found nothing; then the other keeps its plan in the bucket, and is cut off."""
    theirs = ["segment", folder / "scene.tif", "-m", folder / "model", "-o", f"{prefix}/out", *FLAGS]
    theirs += ["--endpoint", endpoint, "--scratch", f"{prefix}/scratch"]
    acquire, began = BucketLock.acquire, []

    def late(lock: BucketLock) -> None:
        if not began:
            began.append(starter.run(theirs, kill_at="after-append:4").code)
        acquire(lock)

    monkeypatch.setattr(BucketLock, "acquire", late)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    heard: list[Any] = []
    more = {"endpoint": endpoint, "listener": heard.append, **OPTIONS}
    sm.segment(folder / "scene.tif", folder / "model", f"{prefix}/out", **more)
    assert began == [-signal.SIGKILL]
    assert next(e for e in heard if isinstance(e, StageStarted) and e.name == "infer").done >= 3
    left = objects(endpoint, prefix)
    assert same(folder, {name.removeprefix("out/"): data for name, data in left.items()})
    assert not [name for name in left if not name.startswith("out/") or ".scenemask" in name]


def test_a_batch_in_a_bucket(folder: Path, prefix: str, endpoint: str, tmp_path: Path, starter: Starter) -> None:
    """Killed once, continued by another machine; files are made and sent by worker processes."""
    for number in range(3):
        shutil.copy(folder / "scene.tif", tmp_path / f"s{number}.tif")
    (tmp_path / "bad.tif").write_bytes(b"no raster")
    scenes = [tmp_path / f"s{n}.tif" for n in range(3)]
    command = ["batch", *scenes, tmp_path / "bad.tif", "-m", folder / "model", "-o", f"{prefix}/out", *FLAGS]
    command += ["--endpoint", endpoint, "--scratch", f"{prefix}/scratch"]
    assert starter.run(command, kill_at="after-append:6").code == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        more = {"endpoint": endpoint, "scratch": f"{prefix}/scratch", "workers": 2, **OPTIONS}
        result = batch([*scenes, tmp_path / "bad.tif"], folder / "model", f"{prefix}/out", **more)
    assert result.counts == {"done": 3, "empty": 0, "failed": 1, "left": 0}
    assert result.exit_code == 6
    there, names = objects(endpoint, f"{prefix}/out"), {path.name for path in (folder / "local").iterdir()}
    for number in range(3):
        assert there[f"s{number}/mask.tif"] == (folder / "local" / "mask.tif").read_bytes()
        assert {n for n in there if n.startswith(f"s{number}/")} == {f"s{number}/{name}" for name in names}
    assert b"IN-002" in there["failed.csv"]
    assert json.loads(there["batch.json"])["counts"]["done"] == 3
    assert not [name for name in there if "/.scenemask/" in name]
    assert objects(endpoint, f"{prefix}/scratch") == {}
    assert not list((tmp_path / "cache").glob("scenemask/outputs/*"))
    again = batch([], folder / "model", f"{prefix}/out", endpoint=endpoint, **OPTIONS)
    assert again.counts["done"] == 3
    assert status_of(f"{prefix}/out/s1", access=Access(endpoint=endpoint)).kind == "complete"


def test_a_store_in_a_bucket_pickles_without_keys(prefix: str, endpoint: str) -> None:
    import pickle

    store = TileStore.create(place_of(endpoint, prefix), shape=(70, 80), dtype="uint8", fill=255, shard_hw=(64, 64))
    data = pickle.dumps(store)
    assert SECRET.encode() not in data
    assert pickle.loads(data).shape == (70, 80)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
