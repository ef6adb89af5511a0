"""Killed at any moment, the same command ends with the same bytes, and computes only what was missing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pipeline as sm
from tests.scenes import save_unet, sha256, smooth_values, write_scene

SHAPE = (200, 240)
OPTIONS = ["--patch", "64", "--tile", "16", "--vectors", "geojson"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("kill")
    scene = write_scene(folder / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))
    save_unet(folder / "model", depth=2)
    return scene, folder / "model"


def _command(scene: Path, model: Path, out: Path, *more: str) -> list[str]:
    main = "from pipeline.cli import main; main()"
    return [sys.executable, "-c", main, "segment", str(scene), "-m", str(model), "-o", str(out), *OPTIONS, *more]


def _start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _ledger_lines(out: Path) -> int:
    return sum(len(f.read_bytes().splitlines()) for f in (out / ".scenemask" / "ledger").glob("*.jsonl"))


@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_a1_sigkill_at_ten_random_moments(prepared: tuple[Path, Path], tmp_path: Path, mode: str) -> None:
    scene, model = prepared
    started = time.monotonic()
    reference = sm.segment(scene, model, tmp_path / "reference", patch=64, tile=16, tiling=mode)
    wall = time.monotonic() - started
    out = tmp_path / "out"
    rng = random.Random(mode)
    kills = 0
    for _ in range(10):
        process = _start(*_command(scene, model, out, "--tiling", mode))
        # Start-up takes seconds; wait for the run to begin, then strike somewhere in it.
        deadline = time.monotonic() + 60
        while not (out / ".scenemask" / "plan.json").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5 * wall))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:  # it was faster than the strike: begin anew
            shutil.rmtree(out)
            continue
        assert not (out / "run.json").exists()
    final = sm.segment(scene, model, out, patch=64, tile=16, tiling=mode)
    assert kills > 0
    assert sha256(final.mask_path) == sha256(reference.mask_path)
    assert final.polygons_path is not None
    assert reference.polygons_path is not None
    assert sha256(final.polygons_path) == sha256(reference.polygons_path)
    assert not [p.name for p in out.iterdir() if "tmp" in p.name or "partial" in p.name]


def test_only_missing_tiles_are_computed(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    scene, model = prepared
    out = tmp_path / "out"
    process = _start(*_command(scene, model, out, "--keep"))
    while _ledger_lines(out) < 5 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = _ledger_lines(out)
    result = sm.segment(scene, model, out, patch=64, tile=16, keep=True)
    total = result.summary["tiles"]["total"]
    assert 5 <= before < total
    assert _ledger_lines(out) == total  # one record per tile: nothing was computed twice


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a4_a5_signals_end_gently_and_say_how_to_go_on(
    prepared: tuple[Path, Path], tmp_path: Path, number: int, code: int
) -> None:
    scene, model = prepared
    out = tmp_path / "out"
    process = _start(*_command(scene, model, out))
    while _ledger_lines(out) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    started = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - started < 15
    assert process.returncode == code, stderr
    assert "same command" in stderr
    assert not (out / "run.json").exists()
    assert sm.segment(scene, model, out, patch=64, tile=16).mask_path.exists()


def test_b8_a_second_run_is_refused_and_a_dead_holder_is_not_waited_for(
    prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    scene, model = prepared
    out = tmp_path / "out"
    process = _start(*_command(scene, model, out))
    while _ledger_lines(out) < 1 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGSTOP)
    second = subprocess.run(_command(scene, model, out), capture_output=True, text=True, check=False)
    assert second.returncode == 5
    assert str(process.pid) in second.stderr
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    third = subprocess.run([*_command(scene, model, out), "--json"], capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert json.loads(third.stdout)["status"] == "ok"


def test_a2_a_killed_worker_costs_its_tiles_only(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    import psutil

    scene, model = prepared
    reference = sm.segment(scene, model, tmp_path / "reference", patch=64, tile=16)
    out = tmp_path / "out"
    process = _start(*_command(scene, model, out, "--workers", "2"))
    while _ledger_lines(out) < 3 and process.poll() is None:
        time.sleep(0.01)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    assert workers
    workers[0].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert sha256(out / "mask.tif") == sha256(reference.mask_path)
