from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.access import Access
from pipeline.bucket import Bucket, NoObjectError
from pipeline.errors import OutputError
from pipeline.store import lock as disk_lock
from pipeline.store.object_lock import BucketLock
from tests.infra.fault_proxy import FaultProxy
from tests.infra.moto_server import BUCKET, KEYS, moto_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return Bucket(BUCKET, Access(endpoint=endpoint, retries=1))


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}/lock.json"


def made_by_another_machine(bucket: Bucket, key: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A lock as a run elsewhere would leave it."""
    with monkeypatch.context() as there:
        there.setattr(disk_lock, "machine", lambda: "elsewhere")
        with BucketLock(bucket, key, heartbeat_s=0.2):
            body = json.loads(bucket.get(key)[0])
    bucket.put(key, json.dumps({**body, **changes}).encode())


def test_one_holder_at_a_time_and_release(bucket: Bucket, key: str) -> None:
    with BucketLock(bucket, key) as first:
        first.ensure_held()
        with pytest.raises(OutputError, match="OU-002"):
            BucketLock(bucket, key).acquire()
        first.ensure_held()
    with pytest.raises(NoObjectError):
        bucket.head(key)
    BucketLock(bucket, key).release()  # of what one does not hold: nothing


def test_of_many_only_one_gets_it(bucket: Bucket, key: str) -> None:
    outcomes: list[BucketLock | None] = []
    start = threading.Barrier(6)

    def compete() -> None:
        lock = BucketLock(bucket, key)
        start.wait()
        try:
            lock.acquire()
            outcomes.append(lock)
        except OutputError:
            outcomes.append(None)

    threads = [threading.Thread(target=compete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (lock for lock in outcomes if lock is not None)
    winner.ensure_held()
    winner.release()


def test_a_dead_owner_elsewhere_is_taken_over_after_two_beats(
    bucket: Bucket, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_another_machine(bucket, key, monkeypatch)
    started = time.monotonic()
    with BucketLock(bucket, key) as lock:
        assert 0.4 <= time.monotonic() - started < 5
        lock.ensure_held()


def test_an_owner_elsewhere_that_beats_is_left_alone(bucket: Bucket, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.setattr(disk_lock, "machine", lambda: "elsewhere")
        holder = BucketLock(bucket, key, heartbeat_s=0.2)
        holder.acquire()
    try:
        with pytest.raises(OutputError, match="OU-002"):
            BucketLock(bucket, key).acquire()
        holder.ensure_held()
    finally:
        holder.release()


def test_a_dead_process_of_this_machine_is_taken_over_at_once(bucket: Bucket, key: str) -> None:
    with BucketLock(bucket, key):
        body = json.loads(bucket.get(key)[0])
    bucket.put(key, json.dumps({**body, "pid_start": -1, "nonce": "gone"}).encode())
    started = time.monotonic()
    with BucketLock(bucket, key):
        assert time.monotonic() - started < 2


def test_who_was_taken_over_notices_and_leaves_the_lock_alone(bucket: Bucket, key: str) -> None:
    lock = BucketLock(bucket, key)
    lock.acquire()
    body = json.loads(bucket.get(key)[0])
    bucket.put(key, json.dumps({**body, "nonce": "another"}).encode())
    with pytest.raises(OutputError, match="OU-003"):
        lock.ensure_held()
    lock.release()
    assert json.loads(bucket.get(key)[0])["nonce"] == "another"
    bucket.delete(key)


def test_a_lock_that_cannot_be_read_is_a_strangers(bucket: Bucket, key: str) -> None:
    bucket.put(key, b"torn")
    fast = iter(range(10**6))
    with BucketLock(bucket, key, clock=lambda: float(next(fast)), sleep=lambda _s: None) as lock:
        lock.ensure_held()


def test_passing_troubles_do_not_lose_it(bucket: Bucket, key: str, endpoint: str) -> None:
    with FaultProxy(endpoint) as proxy:
        there = Bucket(BUCKET, Access(endpoint=proxy.endpoint, retries=0))
        with BucketLock(there, key, heartbeat_s=0.1) as lock:
            before = bucket.head(key).etag
            proxy.spoils = lambda method, _path: method == "PUT"
            time.sleep(0.4)
            proxy.spoils = lambda _method, _path: False
            time.sleep(0.4)
            lock.ensure_held()
            assert bucket.head(key).etag != before
