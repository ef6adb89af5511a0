"""The run's lock: one holder, the dead do not keep it, the slow do not steal it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import OutputError
from pipeline.processes import machine, start_of
from pipeline.store import RunLock
from pipeline.store.lock import HEARTBEAT_S, MAX_WAIT_S, Owner

SPAWN = multiprocessing.get_context("spawn")


def _hold(folder: str, ready: Any, leave: Any) -> None:
    with RunLock(Path(folder)):
        ready.set()
        leave.wait(60)


def _race(folder: str, gate: Any, inside: Any, results: Any) -> None:
    gate.wait(60)
    try:
        with RunLock(Path(folder)):
            with inside.get_lock():
                inside.value += 1
                alone = inside.value == 1
            time.sleep(0.3)
            with inside.get_lock():
                inside.value -= 1
            results.put("alone" if alone else "together")
    except OutputError as error:
        results.put(error.code)


def _come_and_go(folder: str, gate: Any, inside: Any, results: Any) -> None:
    gate.wait(60)
    taken = 0
    for _ in range(200):
        try:
            with RunLock(Path(folder)) as lock:
                with inside.get_lock():
                    inside.value += 1
                    alone = inside.value == 1
                lock.sweep()
                with inside.get_lock():
                    inside.value -= 1
                if not alone:
                    results.put(-1)
                    return
                taken += 1
        except OutputError as error:
            if error.code != "OU-002":
                results.put(-1)
                return
        except Exception:
            results.put(-1)
            raise
    results.put(taken)


def _holder(folder: Path) -> tuple[Any, Any]:
    ready, leave = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=_hold, args=(str(folder), ready, leave))
    process.start()
    assert ready.wait(60)
    return process, leave


class Clock:
    """Time that passes only while somebody sleeps; `on_tick` lives alongside."""

    def __init__(self, on_tick: Any = lambda _now: None) -> None:
        self.now = 0.0
        self._on_tick = on_tick

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._on_tick(self.now)


def _plant(folder: Path, **changes: Any) -> Owner:
    """A lock as another process would have left it."""
    owner = replace(Owner.me(HEARTBEAT_S), nonce="abc123", **changes)
    lock = folder / "lock"
    lock.mkdir(parents=True)
    (lock / "owner.json").write_text(json.dumps(asdict(owner)))
    (lock / "beat").write_bytes(b"%016d" % 0)
    return owner


def test_the_lock_comes_and_goes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunLock(folder) as lock:
        lock.ensure_held()
        assert (folder / "lock" / "owner.json").exists()
        assert not lock.lost
    assert not folder.exists()
    lock.release()
    with RunLock(folder):
        pass


def test_t15_the_folder_is_private(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "run" / "lock").stat().st_mode) == 0o700


def test_b8_a_second_run_is_told_who_holds_it(tmp_path: Path) -> None:
    process, leave = _holder(tmp_path)
    try:
        with pytest.raises(OutputError) as caught, RunLock(tmp_path):
            pass
        assert caught.value.code == "OU-002"
        assert caught.value.exit_code == 5
        assert f"process {process.pid} on {os.uname().nodename}, since 20" in str(caught.value)
    finally:
        leave.set()
        process.join()
    with RunLock(tmp_path):
        pass


def test_b8_the_same_process_cannot_take_it_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(OutputError, match="OU-002"):
        RunLock(tmp_path).acquire()


def test_b8_a_killed_holder_is_taken_over_at_once(tmp_path: Path) -> None:
    process, _ = _holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    start = time.monotonic()
    with RunLock(tmp_path) as lock:  # the parent has not reaped it: dead all the same
        assert time.monotonic() - start < 2
        lock.ensure_held()
    process.join()


def test_a_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    start = start_of(os.getpid())
    assert start is not None
    _plant(tmp_path, pid_start=start - 1)
    with RunLock(tmp_path, sleep=lambda _: pytest.fail("waited for the dead")):
        pass


def test_b8_another_machine_is_taken_over_after_two_silent_heartbeats(tmp_path: Path) -> None:
    _plant(tmp_path, machine="other", host="node7")
    clock = Clock()
    with RunLock(tmp_path, clock=clock, sleep=clock.sleep):
        assert 2 * HEARTBEAT_S <= clock.now <= MAX_WAIT_S
    assert (tmp_path / "lock.taken-abc123").is_dir()


def test_b8_another_machine_that_beats_keeps_it(tmp_path: Path) -> None:
    _plant(tmp_path, machine="other", host="node7")

    def beat(now: float) -> None:
        (tmp_path / "lock" / "beat").write_bytes(b"%016d" % int(now // HEARTBEAT_S))

    clock = Clock(beat)
    with pytest.raises(OutputError, match=r"process \d+ on node7") as caught:
        RunLock(tmp_path, clock=clock, sleep=clock.sleep).acquire()
    assert caught.value.code == "OU-002"
    assert clock.now <= HEARTBEAT_S + 2


def test_a_lock_given_back_while_we_wait_is_ours(tmp_path: Path) -> None:
    _plant(tmp_path, machine="other")

    def leave(now: float) -> None:
        if now > 5 and (tmp_path / "lock").exists():
            (tmp_path / "lock").rename(tmp_path / "gone")

    clock = Clock(leave)
    with RunLock(tmp_path, clock=clock, sleep=clock.sleep) as lock:
        lock.ensure_held()
        assert clock.now < 10


@pytest.mark.parametrize("text", ["", "{}", '{"nonce": "../../etc"}', "\x00\xff", "[1]"])
def test_an_unreadable_owner_is_judged_by_its_beat(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "owner.json").write_text(text)
    clock = Clock()
    with RunLock(tmp_path, clock=clock, sleep=clock.sleep):
        assert clock.now >= 2 * HEARTBEAT_S


def test_a_nonce_cannot_lead_elsewhere(tmp_path: Path) -> None:
    owner = asdict(Owner.me(HEARTBEAT_S)) | {"nonce": "../../x", "machine": "other"}
    folder = tmp_path / "a" / "b"
    (folder / "lock").mkdir(parents=True)
    (folder / "lock" / "owner.json").write_text(json.dumps(owner))
    clock = Clock()
    with RunLock(folder, clock=clock, sleep=clock.sleep):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_b8_a_slow_evictor_cannot_sweep_away_a_new_lock(tmp_path: Path) -> None:
    stale = _plant(tmp_path, machine="other")
    slow = RunLock(tmp_path)
    clock = Clock()
    with RunLock(tmp_path, clock=clock, sleep=clock.sleep) as fast:
        slow._evict(stale)  # judged the old owner dead before `fast` took over, and acts only now
        fast.ensure_held()


def test_release_leaves_the_folder_to_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunLock(folder):
        (folder / "plan.json").write_text("{}")
    assert [p.name for p in folder.iterdir()] == ["plan.json"]


def test_a_folder_that_goes_while_we_come_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last owner removes it between our look at it and our lock."""
    folder = tmp_path / "run"
    mkdir, raced = Path.mkdir, []

    def late(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name.startswith("lock.new-") and not raced:
            raced.append(self)
            folder.rmdir()
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)
    with RunLock(folder) as lock:
        lock.ensure_held()
    assert raced


def test_the_locks_of_the_dead_are_swept_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start = start_of(os.getpid())
    assert start is not None
    _plant(folder, pid_start=start - 1)
    with RunLock(folder) as lock:
        assert list(folder.glob("lock.taken-*"))
        lock.sweep()
        lock.ensure_held()
    assert not folder.exists()


def test_b8_who_wakes_after_the_sweep_gives_a_stranger_s_lock_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stale = _plant(folder, machine="other")
    slow = RunLock(folder)  # judges the owner dead, and sleeps
    clock = Clock()
    with RunLock(folder, clock=clock, sleep=clock.sleep) as first:
        first.sweep()
    with RunLock(folder) as third:
        slow._evict(stale)
        third.ensure_held()
        with pytest.raises(OutputError, match="OU-002"):
            slow.acquire()
    assert not folder.exists()


def test_b8_starters_and_finishers_never_meet(tmp_path: Path) -> None:
    """The folder comes and goes under many processes; nobody fails but for a lock that is held."""
    gate, inside, results = SPAWN.Event(), SPAWN.Value("i", 0), SPAWN.Queue()
    racers = [SPAWN.Process(target=_come_and_go, args=(str(tmp_path / "run"), gate, inside, results)) for _ in range(4)]
    for racer in racers:
        racer.start()
    gate.set()
    told = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(told) > 0
    assert -1 not in told


def test_b8_of_many_at_once_one_gets_it_from_the_dead(tmp_path: Path) -> None:
    start = start_of(os.getpid())
    assert start is not None
    _plant(tmp_path, pid_start=start - 1)
    gate, inside, results = SPAWN.Event(), SPAWN.Value("i", 0), SPAWN.Queue()
    racers = [SPAWN.Process(target=_race, args=(str(tmp_path), gate, inside, results)) for _ in range(4)]
    for racer in racers:
        racer.start()
    time.sleep(1)
    gate.set()
    told = sorted(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert "together" not in told
    assert "alone" in told


def test_a_holder_whose_lock_was_taken_notices(tmp_path: Path) -> None:
    with RunLock(tmp_path, heartbeat_s=0.02) as lock:
        (tmp_path / "lock").rename(tmp_path / "lock.taken-by-someone")
        with RunLock(tmp_path) as other:
            deadline = time.monotonic() + 5
            while not lock.lost:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(OutputError, match="OU-003"):
                lock.ensure_held()
            lock.release()
            other.ensure_held()  # giving back what is lost takes nothing from the new owner


def test_the_heart_beats(tmp_path: Path) -> None:
    with RunLock(tmp_path, heartbeat_s=0.02):
        beat = tmp_path / "lock" / "beat"
        before = beat.read_bytes()
        deadline = time.monotonic() + 5
        while beat.read_bytes() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(beat.read_bytes()) == len(before)


def test_heartbeats_are_bounded_so_that_nobody_waits_over_a_minute(tmp_path: Path) -> None:
    with RunLock(tmp_path, heartbeat_s=1000):
        told = json.loads((tmp_path / "lock" / "owner.json").read_text())
        assert 2 * told["heartbeat_s"] <= MAX_WAIT_S
        assert told["machine"] == machine()
        assert told["pid"] == os.getpid()


def test_an_error_inside_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        1 / 0  # noqa: B018
    assert not (tmp_path / "lock").exists()


def test_what_cannot_be_renamed_is_an_error_not_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(tmp_path, pid=2**22 - 7, pid_start=1)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "lock":
            raise PermissionError(13, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PermissionError):
        RunLock(tmp_path).acquire()
