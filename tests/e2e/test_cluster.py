"""Where tiles run: a scheduler that is there already, and what listens while they do."""

from __future__ import annotations

import contextlib
import http
import http.client
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import pipeline as sm
from pipeline.run.events import Event, StageAdvanced
from tests.scenes import save_unet, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A real `dask scheduler` with two `dask worker` processes, on loopback."""
    port = _free_port()
    address = f"tcp://127.0.0.1:{port}"
    local = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    commands = [[sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", str(port), *local]]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "2", *local]
    commands += [worker, worker]
    with contextlib.ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process)
        _wait_for_workers(address, 2)
        yield address


def _wait_for_workers(address: str, count: int) -> None:
    from distributed import Client

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, TimeoutError), Client(address, timeout="5s", set_as_default=False) as client:
            client.wait_for_workers(count, timeout=30)
            return
    pytest.fail("the scheduler did not come up")


def test_a_given_scheduler_gives_the_same_bytes_and_is_left_running(scheduler: str, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", smooth_values(2, (150, 170)), names=("b0", "b1"))
    model = save_unet(tmp_path / "model", depth=2)
    here = sm.segment(scene, model, tmp_path / "here", patch=64, tile=1, vectors="none")
    there = sm.segment(scene, model, tmp_path / "there", patch=64, tile=1, vectors="none", cluster=scheduler)
    assert sha256(here.mask_path) == sha256(there.mask_path)
    _wait_for_workers(scheduler, 2)


def _listening() -> list[tuple[str, int]]:
    """Addresses and ports on which this process and its children take connections."""
    me, found = psutil.Process(), []
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections(kind="inet")
            found += [(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN]
    return found


def _shows_pages(address: tuple[str, int]) -> bool:
    """Whether Dask's dashboard, or anything of its kind, answers there."""
    for path in ("/status", "/individual-workers", "/info/main/workers.html"):
        asking = http.client.HTTPConnection(*address, timeout=2)
        try:
            asking.request("GET", path)
            if asking.getresponse().status == http.HTTPStatus.OK:
                return True
        except (OSError, http.client.HTTPException):
            continue
        finally:
            asking.close()
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_t9_t10_everything_listens_on_loopback_only_and_shows_no_pages(workers: int, tmp_path: Path) -> None:
    """Looked at whenever a tile is done, while others run; the dashboards asked for once."""
    scene = write_scene(tmp_path / "scene.tif", smooth_values(2, (150, 170)), names=("b0", "b1"))
    model = save_unet(tmp_path / "model", depth=2)
    seen: list[list[tuple[str, int]]] = []
    pages: list[tuple[str, int]] = []

    def look(event: Event) -> None:
        if isinstance(event, StageAdvanced) and event.name == "infer":
            seen.append(_listening())
            if len(seen) == 5:
                pages.extend(address for address in seen[-1] if _shows_pages(address))

    sm.segment(scene, model, tmp_path / "out", patch=64, tile=1, vectors="none", workers=workers, listener=look)
    assert len(seen) >= 20
    assert all(seen), "a run talks to its workers by sockets"
    assert all(re.match(r"127\.|::1$", ip) for addresses in seen for ip, _ in addresses), seen
    assert pages == []
