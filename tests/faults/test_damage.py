"""A3, A17, A19, A21, A22, B9, B10, B22: damage, limits and oddities that a run must survive or name."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pipeline as sm
from pipeline.errors import OutputError
from pipeline.run import segment as module
from pipeline.run.events import StageStarted
from pipeline.store import RunLock, read_ledger
from pipeline.store import lock as lock_module
from tests.faults.commands import ROOT, Starter
from tests.scenes import save_threshold_model, sha256, smooth_values, write_scene

SHAPE = (130, 170)
OPTIONS: dict[str, Any] = {"patch": 64, "tile": 1, "vectors": "geojson"}
FLAGS = ["--patch", "64", "--tile", "1"]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, a model, an undisturbed run in `whole`, and a run killed when all tiles were done in `begun`."""
    folder = tmp_path_factory.mktemp("damage")
    write_scene(folder / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))
    save_threshold_model(folder / "model")
    sm.segment(folder / "scene.tif", folder / "model", folder / "whole", **OPTIONS)
    return folder


@pytest.fixture(scope="module")
def begun(ground: Path, starter: Starter) -> Path:
    """An output folder whose run was killed after the last tile."""
    ended = starter.run(_command(ground, ground / "begun"), kill_at="end-infer:1")
    assert ended.code == -signal.SIGKILL
    return ground / "begun"


def _command(ground: Path, out: Path, *more: object) -> list[object]:
    return ["segment", ground / "scene.tif", "-m", ground / "model", "-o", out, *FLAGS, *more]


def _same(ground: Path, out: Path) -> bool:
    return all(sha256(out / name) == sha256(ground / "whole" / name) for name in ("mask.tif", "polygons.geojson"))


def _resume(ground: Path, out: Path) -> int:
    """Continue; tiles that were taken over."""
    told: list[Any] = []
    sm.segment(ground / "scene.tif", ground / "model", out, listener=told.append)
    return next(e.done for e in told if isinstance(e, StageStarted) and e.name == "infer")


def test_a3_a_fifth_of_the_tiles_run_twice_at_once(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a worker is thought dead and is not: both copies write and record, and one record counts."""
    whole = module.run_tiles
    twice: list[int] = []

    def doubled(connection: Any, job: Any, model: Any, tiles: Any, **more: Any) -> None:
        again = random.Random(3).sample(list(tiles), max(1, len(tiles) // 5))
        twice.extend(tile.index for tile in again)
        mixed = [copy for tile in tiles for copy in ([tile, tile] if tile in again else [tile])]
        whole(connection, job, model, mixed, **more)

    monkeypatch.setattr(module, "run_tiles", doubled)
    result = sm.segment(ground / "scene.tif", ground / "model", tmp_path / "out", keep=True, **OPTIONS)
    assert _same(ground, tmp_path / "out")
    assert (
        result.summary["tiles"]["total"]
        == sm.segment(ground / "scene.tif", ground / "model", ground / "whole").summary["tiles"]["total"]
    )
    lines = [line for f in (tmp_path / "out/.scenemask/ledger").iterdir() for line in f.read_bytes().splitlines()]
    assert len(lines) == result.summary["tiles"]["total"] + len(twice)
    assert len(twice) >= 2


@pytest.mark.parametrize("day", [-86_400.0, 86_400.0])
def test_a17_a_clock_that_jumps_a_day_changes_nothing(
    ground: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, day: float
) -> None:
    """The wall clock of the second machine is a day off, files come from the future or the past, the lock is stale."""
    import os
    import time

    out = tmp_path / "out"
    shutil.copytree(begun, out, symlinks=True)
    for path in out.rglob("*"):
        os.utime(path, (time.time() + day, time.time() + day))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - day)
    total = len(read_ledger(out / ".scenemask" / "ledger"))
    assert _resume(ground, out) == total
    assert _same(ground, out)


@pytest.mark.parametrize("day", [-86_400.0, 86_400.0])
def test_a17_locks_are_judged_by_beats_not_by_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, day: float
) -> None:
    """A holder elsewhere whose clock is a day off: kept while it beats, taken over when it does not."""
    import os
    import time

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lock_module, "machine", lambda: "another")
        held = RunLock(tmp_path, heartbeat_s=0.2)
        held.acquire()
    wall = time.time() + day
    for path in (tmp_path / "lock").rglob("*"):
        os.utime(path, (wall, wall))
    with pytest.raises(OutputError, match="OU-002"):
        RunLock(tmp_path).acquire()
    held._stop.set()
    with RunLock(tmp_path) as taken:
        taken.ensure_held()
    with pytest.raises(OutputError, match="OU-003"):
        held.ensure_held()


def test_b9_the_lock_needs_no_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS or Lustre mounted without it; nor hard links, which some of them refuse."""
    import fcntl
    import os

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(38, "Function not implemented")

    for module_, name in ((fcntl, "flock"), (fcntl, "lockf"), (os, "link")):
        monkeypatch.setattr(module_, name, refused)
    with RunLock(tmp_path) as first:
        first.ensure_held()
        with pytest.raises(OutputError, match="OU-002"):
            RunLock(tmp_path).acquire()


def test_a19_few_files_may_be_open(ground: Path, tmp_path: Path, starter: Starter) -> None:
    """64 are enough; where they are not, the message says how to raise the limit, and the run resumes."""
    assert starter.run(_command(ground, tmp_path / "enough"), nofile=64).code == 0
    assert _same(ground, tmp_path / "enough")
    told = []
    for limit in (20, 24, 28, 32, 36):
        ended = starter.run(_command(ground, tmp_path / "out"), nofile=limit)
        assert ended.code in {0, 7}, (limit, ended.err)
        told += [ended.err] if ended.code else []
    assert told, "no limit was too low"
    assert all("RU-002" in err and "ulimit -n" in err for err in told), told
    assert starter.run(_command(ground, tmp_path / "out")).code == 0
    assert _same(ground, tmp_path / "out")


def test_a21_data_reaches_the_disk_before_the_name_does(ground: Path, tmp_path: Path) -> None:
    """Every result is synced before it is renamed, and the folder before run.json says that all is there."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2"
    main = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    command = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-e",
        calls,
        "-o",
        str(trace),
        *main,
        *map(str, _command(ground, tmp_path / "out")),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "ptrace" in ended.stderr.lower():
        pytest.skip("tracing is not allowed here")
    assert ended.returncode == 0, ended.stderr
    out = tmp_path / "out"
    _order(trace.read_text().splitlines(), out)


def _order(lines: list[str], out: Path) -> None:
    synced: dict[str, int] = {}
    renamed: dict[str, int] = {}
    sources: dict[str, str] = {}
    for number, line in enumerate(lines):
        if found := re.search(r"f(?:data)?sync\(\d+<([^>]*)>", line):
            synced[found[1]] = number
        elif (found := re.search(r"rename(?:at2?)?\((.*)\)", line)) and line.rstrip().endswith("= 0"):
            names = re.findall(r'"([^"]*)"', found[1])
            renamed[names[1]], sources[names[1]] = number, names[0]
    results = [name for name in renamed if Path(name).parent == out]
    assert {Path(name).name for name in results} >= {"mask.tif", "polygons.geojson", "item.json", "run.json"}
    for name in results:
        assert synced[sources[name]] < renamed[name], f"{name} was renamed before it was synced"
    last = max(results, key=renamed.__getitem__)
    assert Path(last).name == "run.json"
    before = max(renamed[name] for name in results if name != last)
    folder = [n for n, line in enumerate(lines) if re.search(rf"fsync\(\d+<{re.escape(str(out))}>", line)]
    assert any(before < n < renamed[last] for n in folder), "the folder is not synced before run.json"
    assert any(n > renamed[last] for n in folder), "the folder is not synced after run.json"


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a22_a_damaged_ledger_costs_tiles_and_nothing_else(
    ground: Path, begun: Path, tmp_path: Path, count: int
) -> None:
    """Cut, overwritten, doubled, with zeros as a power cut leaves them: the result is the same."""
    rng = random.Random(22)
    for case in range(count):
        out = tmp_path / f"out-{case}"
        shutil.copytree(begun, out, symlinks=True)
        (ledger,) = [p for p in (out / ".scenemask" / "ledger").iterdir() if p.stat().st_size]
        data = bytearray(ledger.read_bytes())
        start = rng.randrange(len(data))
        kind = case % 4
        if kind == 0:
            del data[start:]
        elif kind == 1:
            data[start : start + 400] = bytes(len(data[start : start + 400]))
        elif kind == 2:
            data[start : start + 50] = rng.randbytes(50)
        else:
            data += data[start:]
        ledger.write_bytes(bytes(data))
        left = len(read_ledger(ledger.parent))
        assert _resume(ground, out) == left
        assert _same(ground, out)
        assert not (out / ".scenemask").exists()
        shutil.rmtree(out)


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_b10_flipped_bits_in_the_store_cost_tiles_and_nothing_else(
    ground: Path, begun: Path, tmp_path: Path, count: int
) -> None:
    rng = random.Random(10)
    for case in range(count):
        out = tmp_path / f"out-{case}"
        shutil.copytree(begun, out, symlinks=True)
        total = len(read_ledger(out / ".scenemask" / "ledger"))
        shards = sorted(p for p in (out / ".scenemask/store/mask/c").rglob("*") if p.is_file())
        victim = rng.choice(shards)
        data = bytearray(victim.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(bytes(data))
        assert _resume(ground, out) == total - 1
        assert _same(ground, out)
        shutil.rmtree(out)


@pytest.mark.slow
def test_b10_five_hundred_flips_are_all_detected(begun: Path, tmp_path: Path) -> None:
    from pipeline.run.scratch import digest_of
    from pipeline.run.status import status_of

    out = tmp_path / "out"
    shutil.copytree(begun, out, symlinks=True)
    records = read_ledger(out / ".scenemask" / "ledger")
    assert {digest_of(r) is not None for r in records.values()} == {True}
    shards = sorted(p for p in (out / ".scenemask/store/mask/c").rglob("*") if p.is_file())
    rng = random.Random(500)
    for _ in range(500):
        victim = rng.choice(shards)
        good = victim.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        victim.write_bytes(bytes(bad))
        progress = status_of(out).progress
        assert progress is not None
        assert progress.damaged == 1
        victim.write_bytes(good)


@pytest.mark.parametrize("said", ["table", "progress", "json"])
def test_b22_a_reader_that_leaves_does_not_end_a_run(ground: Path, tmp_path: Path, said: str) -> None:
    """As in `scenemask segment ... 2>&1 | head -1`."""
    more = {"table": [], "progress": ["-v"], "json": ["--json"]}[said]
    main = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    process = subprocess.Popen(
        [*main, *map(str, _command(ground, tmp_path / "out", *more))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if said == "progress" else subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(120) == 0
    assert _same(ground, tmp_path / "out")


@pytest.mark.parametrize(("command", "code"), [("status", 0), ("verify", 0), ("doctor", 141)])
def test_b22_nor_changes_what_a_command_found(ground: Path, command: str, code: int) -> None:
    main = [sys.executable, "-c", "from pipeline.cli import main; main()", command]
    arguments = [] if command == "doctor" else [str(ground / "whole")]
    process = subprocess.Popen([*main, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as err:
        said = err.read()
    assert (process.wait(60), said) == (code, b"")
