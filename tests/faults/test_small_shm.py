"""A20: a container's /dev/shm of 64 KB is enough: nothing of ours is handed over through shared memory."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import pipeline as sm
from tests.cluster.running import can_mount, environment
from tests.scenes import save_unet, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = ["--patch", 64, "--tile", 1, "--workers", 2]
SMALL = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"', "sh"]


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs root and unshare")
def test_a20_workers_and_training_on_a_small_shm(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", smooth_values(2, (150, 170)), names=("b0", "b1"))
    save_unet(tmp_path / "model", depth=2)
    here = sm.segment(scene, tmp_path / "model", tmp_path / "here", patch=64, tile=1)
    for command in (
        [
            "segment",
            scene,
            "-m",
            tmp_path / "model",
            "-o",
            tmp_path / "out",
            "--patch",
            64,
            "--tile",
            1,
            "--workers",
            2,
        ],
        ["demo", "-o", tmp_path / "demo", "--size", 512, "--steps", 2],
    ):
        full = [*SMALL, sys.executable, "-m", "pipeline", *map(str, command)]
        ended = subprocess.run(full, check=False, capture_output=True, text=True, env=environment(), timeout=500)
        assert ended.returncode == 0, ended.stderr
    assert sha256(tmp_path / "out" / "mask.tif") == sha256(here.mask_path)
    assert sha256(tmp_path / "out" / "polygons.geojson") == sha256(here.polygons_path)
