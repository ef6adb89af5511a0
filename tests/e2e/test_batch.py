"""Many scenes: each as if it had been segmented alone, whatever the order, the shares, the failures and the kills."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import pipeline as sm
from pipeline.run import finish_there
from pipeline.run.batch import batch
from pipeline.run.events import BatchAdvanced, BatchStarted, StageStarted
from pipeline.run.plan import Plan
from pipeline.run.share import Share
from pipeline.run.status import status_of
from pipeline.store import read_json, read_ledger
from tests.cluster.running import await_lines, dask, free_port, process
from tests.commands import assert_block
from tests.infra.range_server import RangeServer
from tests.scenes import save_unet, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from tests.commands import Cli

OPTIONS: dict[str, Any] = {"patch": 64, "tile": 16}
FLAGS = ["--patch", "64", "--tile", "16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_unet(folder, depth=2)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five of different sizes, one of them without a valid pixel."""
    folder = tmp_path_factory.mktemp("scenes")
    made = [
        write_scene(folder / f"s{i}.tif", smooth_values(2, (60 + 30 * i, 110), seed=i), names=("b0", "b1"))
        for i in range(4)
    ]
    blank = smooth_values(2, (70, 80)) * 0
    return [*made, write_scene(folder / "blank.tif", blank, names=("b0", "b1"), nodata=0)]


@pytest.fixture(scope="module")
def alone(scenes: list[Path], model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Scene -> hashes of mask and polygons of a run of its own."""
    root = tmp_path_factory.mktemp("alone")
    return {path.stem: _hashes(sm.segment(path, model, root / path.stem, **OPTIONS).out_dir) for path in scenes}


def _hashes(out: Path) -> tuple[str, str]:
    return sha256(out / "mask.tif"), sha256(out / "polygons.geojson")


def _all_hashes(root: Path) -> dict[str, tuple[str, str]]:
    return {path.parent.name: _hashes(path.parent) for path in sorted(root.glob("*/run.json"))}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_scene_is_as_if_it_had_been_alone(
    scenes: list[Path], model: Path, alone: dict[str, tuple[str, str]], tmp_path: Path, workers: int
) -> None:
    result = batch(scenes, model, tmp_path / "out", workers=workers, **OPTIONS)
    assert result.counts == {"done": 4, "empty": 1, "failed": 0, "left": 0}
    assert result.exit_code == 0
    assert _all_hashes(tmp_path / "out") == alone
    told = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert {s["name"]: s["status"] for s in told["scenes"]}["blank"] == "empty"
    assert told["counts"] == result.counts
    assert not list((tmp_path / "out").glob("*/.scenemask"))


def test_failed_scenes_are_named_and_the_others_done(scenes: list[Path], model: Path, tmp_path: Path, cli: Cli) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("<html>not found</html>")
    other = write_scene(tmp_path / "=other.tif", smooth_values(3, (50, 50)), names=("x", "y", "z"))
    out = tmp_path / "out"
    code, printed, err = cli("batch", *scenes[:2], bad, other, "-m", model, "-o", out, *FLAGS)
    assert code == 6
    assert "2 done" in printed
    assert "2 failed" in printed
    assert "FAILED bad: IN-002" in err
    rows = list(csv.DictReader((out / "failed.csv").read_text().splitlines()))
    assert [(row["code"], row["exit_code"]) for row in rows] == [("IN-002", "3"), ("IN-012", "3")]
    assert rows[1]["name"].startswith("other-"), "a name that a shell or a spreadsheet would take for something else"
    # The same again leaves what has failed for good alone; asked for, it is tried again, mended in the meantime.
    bad.unlink()
    write_scene(bad, smooth_values(2, (50, 50)), names=("b0", "b1"))
    code, printed, _ = cli("batch", *scenes[:2], bad, other, "-m", model, "-o", out, *FLAGS)
    assert (code, "2 failed" in printed) == (6, True)
    code, printed, _ = cli("batch", *scenes[:2], bad, other, "-m", model, "-o", out, *FLAGS, "--retry-failed", "--json")
    assert code == 6
    assert json.loads(printed)["counts"] == {"done": 3, "empty": 0, "failed": 1, "left": 0}


def test_what_may_pass_is_counted_apart_and_tried_again(
    scenes: list[Path], model: Path, tmp_path: Path, cli: Cli
) -> None:
    """Three failures, of which one is a server's that is away: all of them are code 6, one of them `transient`."""
    bad, torn = tmp_path / "bad.tif", tmp_path / "torn.tif"
    bad.write_text("<html>not found</html>")
    write_scene(torn, smooth_values(2, (200, 200)), names=("b0", "b1"), compress="deflate")
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2] + bytes(200) + whole[len(whole) // 2 + 200 :])
    (tmp_path / "away").mkdir()
    write_scene(tmp_path / "away" / "far.tif", smooth_values(2, (40, 40)), names=("b0", "b1"))
    with RangeServer(tmp_path / "away") as server:
        command = ["batch", scenes[0], bad, torn, server.url("far.tif"), "-m", model, "-o", tmp_path / "out", *FLAGS]
        command += ["--allow-loopback", "--retries", "0"]
        server.misbehave("503")
        code, printed, _ = cli(*command, "--json")
        told = json.loads(printed)
        assert (code, told["counts"]["failed"], told["transient"]) == (6, 3, 1)
        assert {one["name"]: one["exit_code"] for one in told["failures"]} == {"bad": 3, "torn": 3, "far": 8}
        code, printed, _ = cli(*command)
        assert "1 of them for want of disk, memory or a server" in printed
        server.misbehave("")
        code, printed, _ = cli(*command, "--json")
    told = json.loads(printed)
    assert (code, told["counts"]["done"], told["counts"]["failed"], told["transient"]) == (6, 2, 2, 0)


def test_status_tells_what_a_batch_is_doing(
    scenes: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    make = finish_there.make_files

    def watched(recipe: Any, network: Any, *, tell: Any, **more: Any) -> Any:
        def hear(event: Any) -> None:
            if isinstance(event, StageStarted):
                progress = status_of(recipe.out_dir).progress
                assert progress is not None
                assert progress.done == progress.tiles
                seen.append((event.name, progress.stage))
            tell(event)

        return make(recipe, network, tell=hear, **more)

    def advanced(event: Any) -> None:
        if isinstance(event, BatchAdvanced):
            states = [status_of(tmp_path / "out" / path.stem) for path in scenes[:2]]
            assert all(state.kind in {"absent", "empty", "unfinished", "complete"} for state in states)
            for progress in filter(None, (state.progress for state in states)):
                assert (progress.stage == "infer") == (progress.done < progress.tiles)
                seen.extend([("infer", "infer")] if progress.stage == "infer" else [])

    monkeypatch.setattr(finish_there, "make_files", watched)
    assert batch(scenes[:2], model, tmp_path / "out", listener=advanced, **OPTIONS).counts["done"] == 2
    assert set(seen) == {(name, name) for name in ("infer", "mask", "polygons", "files")}


def test_no_more_scenes_are_begun_after_too_many_failures(scenes: list[Path], model: Path, tmp_path: Path) -> None:
    bad = [tmp_path / f"bad{i}.tif" for i in range(2)]
    for path in bad:
        path.write_text("no raster")
    result = batch([*bad, *scenes], model, tmp_path / "out", max_failures=1, **OPTIONS)
    assert result.counts == {"done": 0, "empty": 0, "failed": 2, "left": 5}
    assert result.exit_code == 6


def test_c43_duplicates_are_refused_before_any_work(scenes: list[Path], model: Path, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    twin = write_scene(other / "S0.tif", smooth_values(2, (40, 40)), names=("b0", "b1"))
    out = tmp_path / "out"
    code, _, err = cli("batch", scenes[0], scenes[1], scenes[0], "-m", model, "-o", out)
    assert code == 2
    assert_block(err, "BA-003")
    assert "rows 1, 3" in err
    code, _, err = cli("batch", scenes[0], twin, "-m", model, "-o", out)
    assert code == 2, "folders that differ in case only are one on some file systems"
    assert "two scenes in one" in err
    assert not out.exists()


def test_a_batch_of_something_else_is_refused(scenes: list[Path], model: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    batch(scenes[:1], model, out, **OPTIONS)
    code, _, err = cli("batch", scenes[0], "-m", model, "-o", out, *FLAGS, "--tta", "flips")
    assert code == 5
    assert_block(err, "BA-004")
    assert "setting tta: was 'none', is 'flips'" in err
    # New scenes may come, and the frozen list is enough to continue.
    assert batch(scenes[:2], model, out, **OPTIONS).counts["done"] == 2
    assert batch([], model, out, **OPTIONS).counts["done"] == 2


def test_shares_of_scenes_and_of_tiles_end_in_the_same(
    scenes: list[Path], model: Path, alone: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    by_scenes, by_tiles = tmp_path / "scenes", tmp_path / "tiles"
    for index in (2, 0, 1):
        batch(scenes, model, by_scenes, share=Share(index=index, count=3), **OPTIONS)
    assert _all_hashes(by_scenes) == alone
    for index in range(3):
        part = batch(scenes, model, by_tiles, share=Share(index=index, count=3), split="tiles", **OPTIONS)
        assert part.exit_code == 0
        for ledger in by_tiles.glob("*/.scenemask/ledger"):
            assert {tile % 3 for tile in read_ledger(ledger)} <= set(range(index + 1)), "others' tiles"
    assert not _all_hashes(by_tiles)
    heard: list[Any] = []
    batch([], model, by_tiles, listener=heard.append, **OPTIONS)
    assert _all_hashes(by_tiles) == alone
    assert not [e for e in heard if type(e).__name__ == "BatchAdvanced"], "a tile was computed that a share had done"


def test_processes_that_share_tiles_at_the_same_time(
    scenes: list[Path], model: Path, alone: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shares = [[*_command(scenes, model, out), "--share", f"{i}/2", "--split", "tiles"] for i in range(2)]
    running = [subprocess.Popen(share, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for share in shares]
    for one in running:
        _, err = one.communicate(timeout=300)
        assert one.returncode == 0, err
    assert batch([], model, out, **OPTIONS).exit_code == 0
    assert _all_hashes(out) == alone


def _command(scenes: list[Path], model: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pipeline",
        "batch",
        *map(str, scenes),
        "-m",
        str(model),
        "-o",
        str(out),
        *FLAGS,
        *more,
    ]


def test_a_killed_batch_continues_and_ends_in_the_same(
    scenes: list[Path], model: Path, alone: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    """Killed with all its workers, twice, at moments of its progress; then with SIGTERM."""
    out = tmp_path / "out"
    command = _command(scenes, model, out, "--workers", "2")
    for ended in (0, 2):
        _strike(
            command, lambda ended=ended: len(list(out.glob("*/run.json"))) >= ended and _ledger(out), signal.SIGKILL
        )
    status, err = _strike(command, lambda: len(list(out.glob("*/run.json"))) >= 3, signal.SIGTERM)
    assert status in (0, 75), err
    assert "distributed." not in err, "Dask's own log"
    if status == 75:
        assert "RU-001" in err
        assert "scenes have ended" in err
    recorded = _recorded_px(out, scenes)
    heard: list[Any] = []
    result = batch(scenes, model, out, listener=heard.append, **OPTIONS)
    assert result.exit_code == 0
    assert _all_hashes(out) == alone
    _check_what_was_left(heard, recorded)
    assert sorted(p.name for p in out.iterdir()) == sorted([*alone, ".scenemask-batch", "batch.json"])


def _recorded_px(out: Path, scenes: list[Path]) -> int:
    """Pixels of the recorded tiles of unfinished scenes."""
    found = 0
    for path in scenes:
        plan = read_json(out / path.stem / ".scenemask" / "plan.json")
        if plan is not None and not (out / path.stem / "run.json").exists():
            tiles = Plan.from_json(plan["plan"]).tiling.tiles()
            found += sum(tiles[i].core.num_pixels for i in read_ledger(out / path.stem / ".scenemask" / "ledger"))
    return found


def _check_what_was_left(heard: list[Any], recorded_px: int) -> None:
    """Pixels to go: less with every tile, none in the end, and never those that were recorded."""
    (begun,) = [event for event in heard if isinstance(event, BatchStarted)]
    advanced = [event for event in heard if isinstance(event, BatchAdvanced)]
    left = [event.pixels_left for event in advanced]
    assert left == sorted(left, reverse=True)
    if advanced:
        assert left[-1] == 0
        assert advanced[-1].pixels == begun.pixels - recorded_px


def _ledger(out: Path) -> bool:
    return any(out.glob("*/.scenemask/ledger/*.jsonl"))


def _strike(command: list[str], moment: Any, signum: int) -> tuple[int, str]:
    """Run and signal at a moment, or let it end before."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not moment():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if signum == signal.SIGKILL else os.kill)(process.pid, signum)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_a11_a_batch_whose_scheduler_dies_says_so_and_continues_on_another(
    scenes: list[Path], model: Path, alone: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    out, port = tmp_path / "out", free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", str(port))
    worker = dask("worker", address, "--nthreads", "2", "--host", "127.0.0.1")
    command = _command(scenes, model, out, "--cluster", address)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(process(scheduler, tmp_path / "first.log"))
        await_lines(tmp_path / "first.log", "Scheduler at:")
        stack.enter_context(process(worker, tmp_path / "worker.log"))
        await_lines(tmp_path / "worker.log", "Registered to")
        status, err = _strike(command, lambda: _ledger(out) and (first.kill() or True), 0)
        assert status == 8, err
        assert "CL-003" in err
        assert "continues with: scenemask batch" in err
    told = json.loads((out / "batch.json").read_text())
    assert told["counts"]["failed"] == 0, "no scene is to blame"
    assert told["counts"]["left"] >= 1
    assert batch(scenes, model, out, **OPTIONS).exit_code == 0
    assert _all_hashes(out) == alone


@pytest.mark.slow
def test_300_scenes_15_kills_of_workers_5_bad_scenes(model: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    folder = tmp_path / "scenes"
    folder.mkdir()
    for i in range(295):
        size = (rng.randint(20, 120), rng.randint(20, 120))
        write_scene(folder / f"s{i:03d}.tif", smooth_values(2, size, seed=i), names=("b0", "b1"))
    for i in range(5):
        (folder / f"bad{i}.tif").write_bytes(b"II*\0" + bytes(i))
    out = tmp_path / "out"
    command = _command([folder / "*.tif"], model, out, "--workers", "2")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(out.glob("*/run.json")):
        time.sleep(0.1)
    kills = 0
    while kills < 15 and process.poll() is None:
        time.sleep(rng.uniform(1, 4))
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            children = psutil.Process(process.pid).children(recursive=True)
            rng.choice([p for p in children if "spawn_main" in " ".join(p.cmdline())]).kill()
            kills += 1
    _, err = process.communicate(timeout=3000)
    assert kills == 15, err
    assert process.returncode == 6, err
    told = json.loads((out / "batch.json").read_text())
    assert told["counts"]["left"] == 0
    failed = {s["name"]: s["code"] for s in told["scenes"] if s["status"] == "failed"}
    bad = {f"bad{i}" for i in range(5)}
    assert failed.keys() >= bad
    # A tile whose workers were killed four times counts as their killer; another run tries it again.
    assert {failed[name] for name in failed.keys() - bad} <= {"RS-003"}
    assert len(failed) < 15
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 6, again.stderr
    told = json.loads((out / "batch.json").read_text())
    assert told["counts"] == {"done": 295, "empty": 0, "failed": 5, "left": 0}
    assert {s["name"] for s in told["scenes"] if s["status"] == "failed"} == bad
    for name in rng.sample([f"s{i:03d}" for i in range(295)], 10):
        reference = sm.segment(folder / f"{name}.tif", model, tmp_path / "one" / name, **OPTIONS)
        assert _hashes(out / name) == _hashes(reference.out_dir)
