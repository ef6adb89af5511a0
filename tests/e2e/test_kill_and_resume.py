"""Killed at any moment, the same command ends with the same bytes, and computes only what was missing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
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


def _wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until the run has come so far; it must neither end before nor take forever."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "never came so far"
        time.sleep(0.01)


def _ledger_lines(out: Path) -> int:
    return sum(len(f.read_bytes().splitlines()) for f in (out / ".scenemask" / "ledger").glob("*.jsonl"))


def _tiles(fraction: float, total: int) -> Callable[[Path], bool]:
    return lambda out: _ledger_lines(out) >= fraction * total


def _staged(name: str) -> Callable[[Path], bool]:
    return lambda out: any((out / ".scenemask").glob(name))


def _strike(command: list[str], out: Path, moment: Callable[[Path], bool]) -> bool:
    """Run, and kill at a moment; False when the run was faster and has ended."""
    process = _start(*command)
    deadline = time.monotonic() + 60
    while not moment(out) and process.poll() is None:
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return not (out / "run.json").exists()


@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_a1_sigkill_anywhere(prepared: tuple[Path, Path], tmp_path: Path, mode: str) -> None:
    """Before the first tile, among the tiles, while the mask is put together, and while polygons are written."""
    scene, model = prepared
    reference = sm.segment(scene, model, tmp_path / "reference", patch=64, tile=16, tiling=mode)
    total = reference.summary["tiles"]["total"]
    rng = random.Random(mode)
    moments = {
        "plan": _staged("plan.json"),
        **{f"tiles {n}": _tiles(rng.uniform(0.3 * n, 0.3 * (n + 1)), total) for n in range(3)},
        "mask": _staged("stage/mask.*.tmp*"),
        "mask done": _staged("stage/mask.tif"),
        "polygons": _staged("polygons/*"),
        "writing": _staged("stage/.polygons*"),
    }
    out = tmp_path / "out"
    hits = {}
    for name, moment in moments.items():
        hits[name] = _strike(_command(scene, model, out, "--tiling", mode), out, moment)
        if not hits[name]:  # it was faster than the strike: begin anew
            shutil.rmtree(out)
        assert not (out / "run.json").exists()
    assert sum(hits.values()) >= len(moments) - 2, hits
    assert hits["mask"] or hits["mask done"], hits
    assert hits["polygons"] or hits["writing"], hits
    final = sm.segment(scene, model, out, patch=64, tile=16, tiling=mode)
    assert sha256(final.mask_path) == sha256(reference.mask_path)
    assert final.polygons_path is not None
    assert reference.polygons_path is not None
    assert sha256(final.polygons_path) == sha256(reference.polygons_path)
    assert not [p.name for p in out.iterdir() if "tmp" in p.name or "partial" in p.name]


def test_only_missing_tiles_are_computed(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    scene, model = prepared
    out = tmp_path / "out"
    process = _start(*_command(scene, model, out, "--keep"))
    _wait_for(lambda: _ledger_lines(out) >= 5, process)
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
    _wait_for(lambda: _ledger_lines(out) >= 3, process)
    process.send_signal(number)
    started = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - started < 15
    assert process.returncode == code, stderr
    assert "same command" in stderr
    assert f"segment {scene} -m {model} -o {out}" in stderr
    assert not (out / "run.json").exists()
    assert sm.segment(scene, model, out, patch=64, tile=16).mask_path.exists()


@pytest.mark.parametrize("moment", ["start", "tiles"])
def test_a4_ctrl_c_reaches_the_whole_process_group(prepared: tuple[Path, Path], tmp_path: Path, moment: str) -> None:
    """As a terminal sends it: worker processes leave it to the run to say what is kept."""
    scene, model = prepared
    out = tmp_path / "out"
    process = _start(*_command(scene, model, out, "--workers", "2"))
    if moment == "tiles":
        _wait_for(lambda: _ledger_lines(out) >= 3, process)
    else:
        _wait_for(lambda: len(psutil.Process(process.pid).children(recursive=True)) > 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "tiles are kept" in stderr
    assert "same command" in stderr
    assert f"segment {scene} -m {model} -o {out}" in stderr


def test_b8_a_second_run_is_refused_and_a_dead_holder_is_not_waited_for(
    prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    scene, model = prepared
    out = tmp_path / "out"
    process = _start(*_command(scene, model, out))
    _wait_for(lambda: _ledger_lines(out) >= 1, process)
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
    scene, model = prepared
    reference = sm.segment(scene, model, tmp_path / "reference", patch=64, tile=16)
    out = tmp_path / "out"
    process = _start(*_command(scene, model, out, "--workers", "2"))
    _wait_for(lambda: _ledger_lines(out) >= 3, process)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    assert workers
    workers[0].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert sha256(out / "mask.tif") == sha256(reference.mask_path)
