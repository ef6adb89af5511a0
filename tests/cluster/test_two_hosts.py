"""Two hosts, as network namespaces joined by a cable that is pulled in mid-run: no reset, no answer, just silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

import pytest

from tests.cluster.running import (
    Known,
    address_file,
    await_lines,
    dask,
    environment,
    make_certificates,
    make_known,
    process,
    tls,
)
from tests.scenes import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CUT_S = 30
PATIENCE = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "8s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "11s"}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _can_have_hosts() -> bool:
    if os.geteuid() or shutil.which("ip") is None:
        return False
    name = f"sm{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _can_have_hosts(), reason="needs root and iproute2, for network namespaces")


class Hosts:
    """Namespaces `a` (10.77.0.1) and `b` (10.77.0.2)."""

    def __init__(self) -> None:
        self.a, self.b = (f"sm{os.getpid()}{letter}" for letter in "ab")

    def __enter__(self) -> Self:
        _ip("netns", "add", self.a)
        _ip("netns", "add", self.b)
        _ip("link", "add", "cable", "netns", self.a, "type", "veth", "peer", "name", "cable", "netns", self.b)
        for number, name in enumerate((self.a, self.b), 1):
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.a, self.b):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def on(self, host: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", host, *command]

    def cut(self) -> None:
        _ip("-n", self.b, "link", "set", "cable", "down")

    def mend(self) -> None:
        _ip("-n", self.b, "link", "set", "cable", "up")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts() as made:
        yield made


def _tiles(out: Path) -> list[int]:
    """Finished tiles by worker."""
    return sorted(len(path.read_bytes().splitlines()) for path in (out / ".scenemask" / "ledger").glob("*.jsonl"))


def _await_tiles(out: Path, run: subprocess.Popen[bytes], log: Path, *, each: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.poll() is None:
        done = _tiles(out)
        if len(done) == 2 and done[0] >= each:
            return
        time.sleep(0.05)
    pytest.fail(f"both workers were to finish {each} tiles: {_tiles(out)}\n{log.read_text()[-2000:]}")


def _run_with_cut(hosts: Hosts, known: Known, folder: Path, *, cut_s: float) -> tuple[Path, float]:
    """Segment with a worker on each host, and pull the cable for `cut_s`; the output and how long it went on after."""
    out, where = folder / "out", "tls://10.77.0.1:8786"
    keys = make_certificates(folder / "keys")
    cluster = address_file(folder / "c.yaml", where, keys, cores=2, tcp_timeout="11 s")
    logs = {name: folder / f"{name}.log" for name in ("scheduler", "here", "there", "run")}
    worker = dask("worker", where, "--nthreads", "2", "--memory-limit", "0", *tls(keys))
    scheduler = dask("scheduler", "--host", "10.77.0.1", "--port", "8786", *tls(keys))
    options = [f"--{name}={value}" for name, value in known.options.items()]
    command = ["-c", "from pipeline.cli import main; main()", "segment", str(known.scene), "-m", str(known.model)]
    command += ["-o", str(out), "--cluster", cluster, *options]
    with (
        process(hosts.on(hosts.a, *scheduler), logs["scheduler"], **PATIENCE),
        process(hosts.on(hosts.a, *worker), logs["here"], **PATIENCE),
        process(hosts.on(hosts.b, *worker), logs["there"], **PATIENCE),
    ):
        await_lines(logs["scheduler"], "Register worker", 2)
        with process(hosts.on(hosts.a, sys.executable, *command), logs["run"], **environment()) as run:
            _await_tiles(out, run, logs["run"], each=3)
            hosts.cut()
            cut = time.monotonic()
            while run.poll() is None and time.monotonic() < cut + cut_s:
                time.sleep(0.1)
            hosts.mend()
            run.wait(timeout=240)
            assert run.returncode == 0, logs["run"].read_text()[-3000:]
            return out, time.monotonic() - cut


def test_a12_a_host_that_falls_silent_costs_its_tiles_only(hosts: Hosts, known: Known, tmp_path: Path) -> None:
    """It stays away until the end: the other does its work."""
    out, seconds = _run_with_cut(hosts, known, tmp_path, cut_s=120)
    assert sha256(out / "mask.tif") == known.sha256
    assert 5 < seconds < 120, "it was waited for, and not for ever"
    assert not (out / ".scenemask").exists()


@pytest.mark.slow
def test_a12_a_link_that_is_cut_for_half_a_minute(hosts: Hosts, tmp_path: Path) -> None:
    """And comes back in mid-run: what the lost worker still does, or does again, changes nothing."""
    (tmp_path / "known").mkdir()
    known = make_known(tmp_path / "known", side=800)
    out, seconds = _run_with_cut(hosts, known, tmp_path, cut_s=CUT_S)
    assert sha256(out / "mask.tif") == known.sha256
    assert seconds > CUT_S, "the run was to go on after the cut"
