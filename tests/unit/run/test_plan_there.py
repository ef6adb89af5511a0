"""A worker that is killed while it plans costs a try, not the run; what the plan itself does wrong is told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import dask
import pytest

from pipeline.errors import InfrastructureError, InputError, PipelineError
from pipeline.run import plan_there
from pipeline.run.basis import Basis
from pipeline.run.cluster import Connection, connect
from pipeline.run.plan_there import basis_of_a_worker
from pipeline.run.settings import make_settings


class _Scene:
    name = "s"


def _plans(folder: Path, kills: int) -> Any:
    """Kills its worker so many times, then answers."""

    def find_basis_there(*_args: object) -> str:
        number = len(list(folder.iterdir()))
        (folder / str(number)).touch()
        if number < kills:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"planned after {number}"

    return find_basis_there


def _plan(connection: Connection) -> Basis:
    settings = make_settings({"workers": 2})
    return basis_of_a_worker(connection, _Scene(), "the model", settings, check_stop=lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_killed_while_they_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int) -> None:
    """Dask gives a task up after the second worker that dies of it; it is then tried anew."""
    monkeypatch.setattr(plan_there, "find_basis_there", _plans(tmp_path, kills))
    with connect(make_settings({"workers": 2})) as connection:
        assert _plan(connection) == f"planned after {kills}"


@pytest.mark.slow
def test_a_plan_that_kills_every_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After six workers it is the plan's fault, and the run ends."""
    monkeypatch.setattr(plan_there, "find_basis_there", _plans(tmp_path, 1_000))
    with connect(make_settings({"workers": 2})) as connection, pytest.raises(PipelineError) as caught:
        _plan(connection)
    assert (caught.value.code, caught.value.where) == ("RS-003", "planning s")
    assert len(list(tmp_path.iterdir())) == 6


def test_what_planning_raises_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_args: object) -> None:
        (tmp_path / str(time.monotonic_ns())).touch()
        raise InputError("no such file", code="IN-001", title="Scene cannot be read", where="s", fix="look for it")

    monkeypatch.setattr(plan_there, "find_basis_there", refuses)
    with connect(make_settings({"workers": 2})) as connection, pytest.raises(InputError, match="no such file"):
        _plan(connection)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_scheduler_that_dies_meanwhile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as an error of Dask's, and not never."""

    def sleeps(*_args: object) -> None:
        time.sleep(60)

    monkeypatch.setattr(plan_there, "find_basis_there", sleeps)
    patience = dask.config.set({"distributed.comm.timeouts.connect": "2s"})
    with patience, connect(make_settings({"workers": 2})) as connection:
        scheduler = connection.client.cluster.scheduler
        cut = time.monotonic() + 1.0

        def check_stop() -> None:
            nonlocal cut
            if time.monotonic() > cut:
                cut = float("inf")
                connection.client.sync(scheduler.close)

        settings = make_settings({"workers": 2})
        with pytest.raises(InfrastructureError) as caught:
            basis_of_a_worker(connection, _Scene(), "m", settings, check_stop=check_stop)  # type: ignore[arg-type]
    assert caught.value.code == "CL-003"
