"""How long the watchdog waits before it acts, by a clock of the test's own."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.run import watchdog as watchdog_module
from pipeline.run.watchdog import Watchdog
from pipeline.store import Folder

if TYPE_CHECKING:
    from pathlib import Path


class _Clock:
    """Stands in for the module `time`."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


class _Client:
    """A cluster of one worker that is busy; notes when its workers are started anew."""

    def __init__(self) -> None:
        self.restarted: list[list[str]] = []

    def processing(self) -> dict[str, tuple[str, ...]]:
        return {"worker": ("key",)}

    def has_what(self) -> dict[str, tuple[str, ...]]:
        return {}

    def scheduler_info(self, **_: Any) -> dict[str, Any]:
        return {"workers": {"worker": {}}}

    def restart_workers(self, workers: list[str], **_: Any) -> None:
        self.restarted.append(workers)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(watchdog_module, "time", made)
    return made


class _Watched:
    """A watchdog with `stuck_after_s` of ten seconds, and what it did."""

    def __init__(self, folder: Path, clock: _Clock, *, in_process: bool) -> None:
        self.client, self._clock = _Client(), clock
        self.told: list[Any] = []
        connection: Any = types.SimpleNamespace(client=self.client, in_process=in_process)
        self.dog = Watchdog(connection, stuck_after_s=10, dump_to=Folder(folder), tell=self.told.append)

    def acts_after(self, seconds: float) -> bool:
        """Whether it acts when so much time has gone by since it last did or something moved."""
        before, self._clock.now = len(self.told), self._clock.now + seconds
        self.dog.look({"tile 0": seconds}, keys=set())
        return len(self.told) > before


@pytest.mark.parametrize("in_process", [True, False])
def test_d18_the_first_tile_is_given_six_times_the_time(tmp_path: Path, clock: _Clock, *, in_process: bool) -> None:
    """Networks are compiled and workers are on their way: that is no standstill."""
    watched = _Watched(tmp_path, clock, in_process=in_process)
    assert not watched.acts_after(59)
    assert not watched.client.restarted
    assert not list(tmp_path.iterdir())
    assert watched.acts_after(1.5)
    assert "nothing has moved for 60 s" in watched.told[0].text
    assert watched.client.restarted == ([] if in_process else [["worker"]])
    assert len(list(tmp_path.glob("stuck-*.json"))) == 1


def test_d18_workers_started_anew_warm_up_again(tmp_path: Path, clock: _Clock) -> None:
    """Nothing has ended yet, so the next ones are given as long as the first."""
    watched = _Watched(tmp_path, clock, in_process=False)
    assert watched.acts_after(61)
    assert not watched.acts_after(59)
    assert watched.acts_after(2)


def test_d18_after_the_first_tile_that_patience_ends(tmp_path: Path, clock: _Clock) -> None:
    watched = _Watched(tmp_path, clock, in_process=True)
    clock.now += 55
    watched.dog.moved(0.5)
    assert not watched.acts_after(9)
    assert watched.acts_after(1.5)


def test_slow_tiles_are_given_ten_times_their_median(tmp_path: Path, clock: _Clock) -> None:
    watched = _Watched(tmp_path, clock, in_process=True)
    for seconds in (4, 5, 300):
        watched.dog.moved(seconds)
    assert not watched.acts_after(49)
    assert watched.acts_after(1.5)
