"""Kills of a run: at random moments, at every sync point, of workers and of schedulers; and what must hold afterwards.

Shared by the tests and by `tests.bench.kills`.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import psutil

from pipeline.store import read_ledger
from tests.faults.commands import ROOT, Ended, Starter
from tests.scenes import save_unet, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPE = (80, 96)
TILES = 30
OPTIONS = ("--patch", "64", "--tile", "16", "--vectors", "geojson,gpkg", "--json")
_IN_FLIGHT = 2 * 2 * 2
"""Twice as many tiles are submitted as two workers of two threads compute at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One kill and the run after it, all of which has been checked."""

    kind: str
    """client, worker or scheduler; at a moment or a point."""
    where: str
    """Which moment or point."""
    hit: bool
    """False where the run had ended before."""
    recorded: int
    """Tiles in the ledger after the kill."""
    recomputed: int
    """Tiles that had been written and were computed again."""
    seconds: float


@dataclass(slots=True)
class Ground:
    """A scene, a network, an undisturbed run of them, and a folder for disturbed ones."""

    folder: Path
    starter: Starter
    scene: Path
    model: Path
    seconds: float
    """How long the undisturbed run took."""
    counts: dict[str, int]
    """Sync point -> how often it reached it."""
    mask: str
    polygons: set[bytes]
    number: int = 0
    clusters: list[Cluster] = field(default_factory=list)

    def command(self, out: Path, *more: object) -> list[object]:
        """Arguments of `scenemask`."""
        return ["segment", self.scene, "-m", self.model, "-o", out, *OPTIONS, *more]

    def place(self) -> Path:
        """A folder of its own for one disturbed run: output and scratch will lie in it."""
        self.number += 1
        place = self.folder / f"run-{self.number}"
        place.mkdir()
        return place


@contextlib.contextmanager
def prepared(folder: Path, starter: Starter) -> Iterator[Ground]:
    """Scene, network and the undisturbed run."""
    scene = write_scene(folder / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))
    save_unet(folder / "model", depth=2)
    ground = Ground(folder, starter, scene, folder / "model", 0.0, {}, "", set())
    for name in ("warm", "undisturbed"):
        started = time.monotonic()
        ended = starter.run(ground.command(folder / name))
        assert ended.code == 0, ended.err
        ground.seconds = time.monotonic() - started
        ground.counts = ended.counts
    ground.mask, ground.polygons = sha256(folder / name / "mask.tif"), polygons_of(folder / name)
    assert json.loads(ended.out)["tiles"]["total"] == TILES
    try:
        yield ground
    finally:
        for cluster in ground.clusters:
            cluster.stop()


def polygons_of(out: Path) -> set[bytes]:
    """WKB of all polygons, of both files, with their class."""
    frames = [
        geopandas.read_file(out / "polygons.geojson"),
        geopandas.read_file(out / "polygons.gpkg", layer="polygons"),
    ]
    return {bytes(row.geometry.wkb) + str(row["class_id"]).encode() for frame in frames for _, row in frame.iterrows()}


def strike_client(ground: Ground, *, after_s: float | None = None, point: str | None = None) -> Outcome:
    """Kill the command after some seconds, or at a sync point such as `after-rename:3`; then run it again."""
    place, started = ground.place(), time.monotonic()
    command = ground.command(place / "out", "--scratch", place / "scratch")
    running = ground.starter.start(command, kill_at=point)
    if after_s is not None:
        time.sleep(after_s)
        running.kill(signal.SIGKILL)
    killed = running.wait()
    assert killed.code in {0, -signal.SIGKILL}, killed.err
    assert point is None or killed.code == -signal.SIGKILL, f"{point} never came"
    recorded, written = _progress(place)
    finished = (place / "out" / "run.json").exists()
    ended = _again(ground, command)
    computed = ended.counts.get("after-append", 0)
    assert computed == (0 if finished else TILES - recorded), f"{computed} tiles computed, {recorded} were recorded"
    recomputed = written - recorded
    assert recomputed <= _IN_FLIGHT
    check(ground, place)
    return Outcome(
        kind="client at a point" if point else "client at a moment",
        where=point or f"{after_s:.3f} s",
        hit=killed.code != 0,
        recorded=recorded,
        recomputed=recomputed,
        seconds=round(time.monotonic() - started, 2),
    )


def strike_local_worker(ground: Ground, *, after_tiles: int, rng: random.Random) -> Outcome:
    """Kill one of two worker processes once so many tiles are recorded: the run goes on by itself."""
    place, started = ground.place(), time.monotonic()
    command = ground.command(place / "out", "--workers", 2, "--keep")
    running = ground.starter.start(command)
    hit = False
    while not running.ended() and not hit:
        if len(_recorded(place)) >= after_tiles:
            workers = [p for p in psutil.Process(running.pid).children(recursive=True) if _is_worker(p)]
            if workers:
                rng.choice(workers).kill()
                hit = True
        time.sleep(0.002)
    ended = running.wait()
    assert ended.code == 0, ended.err
    return _kept_outcome(ground, place, command, "worker of the run", f"{after_tiles} tiles", started, hit=hit)


def strike_cluster(ground: Ground, *, who: str, after_tiles: int, rng: random.Random) -> Outcome:
    """Kill a worker, or the scheduler, of a cluster that runs on its own; the scheduler is started again."""
    if not ground.clusters:
        ground.clusters.append(Cluster(ground.folder / "cluster"))
    cluster = ground.clusters[0]
    place, started = ground.place(), time.monotonic()
    command = ground.command(place / "out", "--cluster", cluster.address, "--keep")
    running = ground.starter.start(command)
    while len(_recorded(place)) < after_tiles and not running.ended():
        time.sleep(0.002)
    hit = not running.ended()
    if who == "worker":
        cluster.replace_worker(rng.randrange(2))
    else:
        cluster.kill_scheduler()
    ended = running.wait()
    if who == "scheduler":
        if hit and ended.code != 0:
            assert ended.code == 8, ended.err
            assert "CL-003" in ended.err
        cluster.start()
        ended = _again(ground, command)
    assert ended.code == 0, ended.err
    return _kept_outcome(ground, place, command, f"{who} of a cluster", f"{after_tiles} tiles", started, hit=hit)


def _kept_outcome(
    ground: Ground, place: Path, command: list[object], kind: str, where: str, started: float, *, hit: bool
) -> Outcome:
    """Count what was computed from the ledger that `--keep` left, then clean up with the product's own means."""
    ledger = place / "out" / ".scenemask" / "ledger"
    lines = sum(len(path.read_bytes().splitlines()) for path in ledger.glob("*.jsonl"))
    assert 0 <= lines - TILES <= _IN_FLIGHT, f"{lines} records of {TILES} tiles"
    left = {path.name for path in (place / "out" / ".scenemask").iterdir()}
    assert left <= {"plan.kept.json", "ledger", "store", "stage", "polygons"}, left
    assert not [p for name in ("stage", "polygons") for p in (place / "out" / ".scenemask" / name).glob("*")]
    assert json.loads(_again(ground, command).out)["tiles"]["total"] == TILES  # done: nothing is touched
    shutil.rmtree(place / "out" / ".scenemask")
    check(ground, place)
    seconds = round(time.monotonic() - started, 2)
    return Outcome(kind=kind, where=where, hit=hit, recorded=TILES, recomputed=lines - TILES, seconds=seconds)


def check(ground: Ground, place: Path) -> None:
    """Results are those of the undisturbed run, and nothing else is there."""
    out = place / "out"
    assert sha256(out / "mask.tif") == ground.mask
    assert polygons_of(out) == ground.polygons
    record = json.loads((out / "run.json").read_text())
    assert {path.name for path in out.iterdir()} == {*record["files"], "run.json"}
    assert {path.name for path in place.iterdir()} <= {"out", "scratch"}
    assert not list((place / "scratch").glob("*"))
    shutil.rmtree(place)


def _again(ground: Ground, command: list[object]) -> Ended:
    ended = ground.starter.run(command)
    assert ended.code == 0, ended.err
    return ended


def _recorded(place: Path) -> dict[int, Any]:
    return read_ledger(place / "out" / ".scenemask" / "ledger")


def _progress(place: Path) -> tuple[int, int]:
    """Tiles recorded, and tiles whose pixels lie in the store; both 0 once the run has ended and cleans up."""
    if (place / "out" / "run.json").exists():
        return 0, 0
    written = {path.relative_to(path.parents[1]) for path in (place / "scratch").glob("*/mask/c/*/*") if path.is_file()}
    return len(_recorded(place)), sum(path.suffix != ".partial" and "partial" not in path.name for path in written)


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "spawn_main" in " ".join(process.cmdline())
    return False


class Cluster:
    """A real `dask scheduler` with two `dask worker` processes on loopback."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        """Scheduler and workers; those that are left of an earlier one are ended first."""
        self.stop()
        self._scheduler = self._start("dask_scheduler", "--port", str(self._port))
        self._workers = [self._worker() for _ in range(2)]
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def kill_scheduler(self) -> None:
        """SIGKILL; the workers are left to themselves."""
        assert self._scheduler is not None
        self._scheduler.kill()
        self._scheduler.wait()

    def replace_worker(self, number: int) -> None:
        """SIGKILL one worker and start another."""
        self._workers[number].kill()
        self._workers[number].wait()
        self._workers[number] = self._worker()

    def stop(self) -> None:
        """End all of it."""
        for process in [*self._workers, *([self._scheduler] if self._scheduler else [])]:
            process.kill()
            process.wait()

    def _worker(self) -> subprocess.Popen[bytes]:
        preload = ["--preload", "pipeline.run.segment"]
        return self._start("dask_worker", self.address, "--nthreads", "2", "--no-nanny", *preload)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        local = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
        command = [sys.executable, "-m", f"distributed.cli.{name}", *arguments, *local]
        if name == "dask_worker":
            command += ["--local-directory", str(self._folder)]
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def _wait(self) -> None:
        from distributed import Client

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError, TimeoutError),
                Client(self.address, timeout="5s", set_as_default=False) as client,
            ):
                client.wait_for_workers(2, timeout=60)
                return
        log = (self._folder / "dask_scheduler.log").read_text()
        raise AssertionError(f"the scheduler did not come up: {log}")


def points(counts: dict[str, int], rng: random.Random, *, each: int) -> list[str]:
    """Each sync point `each` times, at different counts as far as there are so many."""
    chosen = []
    for name in sorted(counts):
        numbers = rng.sample(range(1, counts[name] + 1), min(each, counts[name]))
        chosen += [f"{name}:{number}" for number in numbers]
    return chosen
