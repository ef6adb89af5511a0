"""What becomes of tiles when their workers die."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from dask.utils import key_split
from distributed import Client, LocalCluster

from pipeline.errors import InfrastructureError
from pipeline.grid import Tile, Window
from pipeline.run import feed, tile_task
from pipeline.run.cluster import Connection, connect
from pipeline.run.events import Event, silent
from pipeline.run.failures import as_failure
from pipeline.run.settings import make_settings
from pipeline.run.stop import StopFlag
from pipeline.run.tasks import Task, Watch, run_tasks
from pipeline.run.tile_task import TileDone
from pipeline.store import Folder, TileRecord


def test_an_answer_that_died_with_its_worker_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is killed after its tiles ended and before anybody fetched what they returned."""
    calls = tmp_path / "calls"

    def run_tile(_job: object, _model: object, tile: Tile, attempt: int) -> TileDone:
        again = calls.exists() and str(tile.index) in calls.read_text().split()
        with calls.open("a") as file:
            file.write(f"{tile.index}\n")
        time.sleep(4.0 if again else 0.0)
        return TileDone(record=_record(tile.index, attempt), patches=1, pixels=1)

    monkeypatch.setattr(feed, "run_tile", run_tile)
    monkeypatch.setattr(feed, "forget", lambda _key, **_: None)
    tiles = [Tile(index=i, core=Window(row_off=i, col_off=0, height=1, width=1)) for i in range(4)]
    seen: list[int] = []
    with _two_workers() as cluster, Client(cluster, set_as_default=False) as client:

        def on_done(done: TileDone) -> None:
            if not seen:
                time.sleep(2)  # the other three end meanwhile
                held = {address: sum("run_tile" in key for key in keys) for address, keys in client.has_what().items()}
                most = max(held, key=lambda address: held[address])  # at least two, of which one was fetched at most
                os.kill(client.run(os.getpid, workers=[most])[most], signal.SIGKILL)
                time.sleep(2)
            seen.append(done.record.tile)

        connection = Connection(client, slots=2)
        feed.run_tiles(connection, _Job(), None, tiles, attempts={}, on_done=on_done, watch=_watch(tmp_path))
    assert sorted(seen) == [0, 1, 2, 3]
    assert len(calls.read_text().splitlines()) > len(tiles)


def test_d10_a_worker_with_a_broken_gpu_is_replaced_and_its_tile_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "failed once"

    def compute(_job: object, _model: object, tile: Tile, attempt: int) -> TileDone:
        if tile.index == 1 and not marker.exists():
            marker.touch()
            raise RuntimeError("CUDA error: device-side assert triggered")
        return TileDone(record=_record(tile.index, attempt), patches=1, pixels=1)

    def run_tile(job: object, model: object, tile: Tile, attempt: int) -> TileDone:
        tile_task._compute_tile = compute  # in the worker's process
        return tile_task.run_tile(job, model, tile, attempt)  # type: ignore[arg-type]

    monkeypatch.setattr(feed, "run_tile", run_tile)
    monkeypatch.setattr(feed, "forget", lambda _key, **_: None)
    tiles = [Tile(index=i, core=Window(row_off=i, col_off=0, height=1, width=1)) for i in range(4)]
    seen: list[int] = []
    with _two_workers() as cluster, Client(cluster, set_as_default=False) as client:
        before = set(client.run(os.getpid).values())
        feed.run_tiles(
            Connection(client, slots=2),
            _Job(),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            tiles,
            attempts={},
            on_done=lambda done: seen.append(done.record.tile),
            watch=_watch(tmp_path),
        )
        client.wait_for_workers(2, timeout=30)
        assert set(client.run(os.getpid).values()) != before
    assert sorted(seen) == [0, 1, 2, 3]


def test_d10_in_one_process_the_loss_is_told() -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    tile_task.leave_broken_process(error)  # no worker here: nothing ends
    failure = as_failure(error, where="tile 3")
    assert (failure.code, failure.exit_code) == ("RS-005", 7)
    assert "illegal memory access" in str(failure)
    assert "tile 3" in failure.where


def _work(folder: Path, number: int, what: str = "") -> int:
    """A task that does its work, or dies of it: always, by a signal of its own, or stands still once."""
    marker = folder / f"{number}"
    with marker.open("a") as file:
        file.write("x")
    if what == "abort":
        os.abort()
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "killed twice" and len(marker.read_text()) <= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stands still once" and len(marker.read_text()) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.2)
    return number


def _run(folder: Path, special: dict[int, str], *, count: int = 12, stuck_after_s: float = 300) -> tuple[Any, Any, Any]:
    """Tasks on two worker processes: what was done, what failed, what was told and then written down."""
    done: list[int] = []
    failed: dict[int, BaseException] = {}
    told: list[Any] = []
    tasks = iter(
        Task(
            name=f"task {number}",
            function=_work,
            arguments=(folder, number, special.get(number, "")),
            on_done=done.append,
            on_failed=functools.partial(failed.__setitem__, number),
        )
        for number in range(count)
    )

    def tell(event: Event) -> None:
        told.append(event)
        told.extend(json.loads(path.read_text()) for path in folder.glob("stuck-*-1.json"))

    watch = Watch(stop=StopFlag(), tell=tell, stuck_after_s=stuck_after_s, dump_to=Folder(folder))
    with connect(make_settings({"workers": 2})) as connection:
        run_tasks(connection, lambda: next(tasks, None), watch=watch)
    return done, failed, told


def test_a8_a_tile_that_crashes_workers_fails_alone_and_is_named(tmp_path: Path) -> None:
    done, failed, _ = _run(tmp_path, {3: "abort", 7: "killed"})
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert set(failed) == {3, 7}
    assert (failed[3].code, failed[3].exit_code) == ("RS-008", 7)
    assert "SIGABRT" in str(failed[3])
    assert failed[7].code == "RS-003"
    # On two workers, or on one and in the queue of another that died; then once by itself.
    assert 2 <= len((tmp_path / "3").read_text()) <= 3


def test_a9_a_tile_that_was_killed_on_two_workers_is_computed_by_itself(tmp_path: Path) -> None:
    done, failed, _ = _run(tmp_path, {5: "killed twice"})
    assert sorted(done) == list(range(12))
    assert not failed


def test_a10_workers_that_stand_still_are_started_anew(tmp_path: Path) -> None:
    done, failed, told = _run(tmp_path, {4: "stands still once", 5: "stands still once"}, stuck_after_s=1)
    assert sorted(done) == list(range(12))
    assert not failed
    assert any("nothing has moved" in getattr(event, "text", "") for event in told)
    seen = next(one for one in told if isinstance(one, dict))
    assert {"task 4", "task 5"} & set(seen["running"])
    assert len(seen["workers"]) == 2
    assert not list(tmp_path.glob("stuck-*")), "all has ended in the end"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_kept_of_tasks_does_not_grow_with_them(tmp_path: Path, workers: int) -> None:
    """Neither by Dask's list of what was ever submitted, nor by its cache of keys; and no task is moved about."""
    left = iter(range(1_500))
    done: list[int] = []

    def source() -> Task | None:
        number = next(left, None)
        if number is None:
            return None
        return Task(
            name=str(number), function=abs, arguments=(number,), on_done=done.append, on_failed=pytest.fail
        )  # fmt: skip

    with connect(make_settings({"workers": workers})) as connection:
        run_tasks(connection, source, watch=_watch(tmp_path))
        scheduler = connection.client.cluster.scheduler
        assert sorted(done) == list(range(1_500))
        spans = scheduler.extensions["spans"].spans.values()
        assert [span.metadata for span in spans if span.metadata] == []
        assert key_split.cache_info().currsize <= 1_000
        assert "stealing" not in scheduler.extensions


def _kill_starting(kills: int, stop: threading.Event) -> None:
    """Kill worker processes as soon as they are there, so many."""
    me = psutil.Process()
    while kills and not stop.wait(0.02):
        for child in me.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if kills and "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    child.wait()
                    kills -= 1


@pytest.mark.parametrize("kills", [10**6, pytest.param(1, marks=pytest.mark.slow)])
def test_a2_workers_that_are_killed_while_they_start(kills: int) -> None:
    """They are started again; where it helps nothing, that is told, and is no mistake of ours."""
    stop = threading.Event()
    killer = threading.Thread(target=_kill_starting, args=(kills, stop))
    killer.start()
    try:
        if kills == 1:
            with connect(make_settings({"workers": 2})) as connection:
                assert len(connection.client.nthreads()) == 2
            killer.join()
        else:
            with pytest.raises(InfrastructureError, match="CL-018"), connect(make_settings({"workers": 2})):
                pass
    finally:
        stop.set()
        killer.join()


class _Deadly:
    """A shared value, which a worker does not survive before it was made so often."""

    def __init__(self, marker: Path, *, times: int) -> None:
        self.state = (marker, times, os.getpid())

    def __reduce__(self) -> Any:
        return _unpacked, self.state


def _unpacked(marker: Path, times: int, client: int) -> _Deadly:
    if os.getpid() != client:
        with marker.open("a") as file:
            file.write("x")
        if len(marker.read_text()) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
    return _Deadly(marker, times=times)


def _use(_shared: _Deadly, number: int) -> int:
    return number


@pytest.mark.parametrize("times", [2, pytest.param(10**6, marks=pytest.mark.slow)])
def test_a2_workers_that_die_of_what_tasks_share_are_not_held_against_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """As where they are killed before a model is unpacked; what is always deadly ends the tasks in the end."""
    monkeypatch.setattr("pipeline.run.tasks._MOST_ROUNDS", 4)
    done: list[int] = []
    failed: list[BaseException] = []
    with connect(make_settings({"workers": 2})) as connection:
        shared = connection.share(_Deadly(tmp_path / "made", times=times))
        tasks = iter(
            Task(name=f"{n}", function=_use, arguments=(shared, n), on_done=done.append, on_failed=failed.append)
            for n in range(6)
        )
        run_tasks(connection, lambda: next(tasks, None), watch=_watch(tmp_path))
    if times == 2:
        assert sorted(done) == list(range(6))
        assert not failed
    else:
        assert len(failed) == 6
        assert as_failure(failed[0], where="0").code == "RS-003"


class _Scene:
    name = "scene"


class _Job:
    key = "job"
    scene = _Scene()


def _watch(folder: Path, *, stuck_after_s: float = 300) -> Watch:
    return Watch(stop=StopFlag(), tell=silent, stuck_after_s=stuck_after_s, dump_to=Folder(folder))


def _record(index: int, attempt: int) -> TileRecord:
    return TileRecord(
        tile=index, kind="empty", mask_sha256=None, plan_id="plan", seconds=0.0, valid_px=0, attempt=attempt
    )


def _two_workers() -> LocalCluster:
    return LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
