"""Tiles in any order, some of them twice or three times at once, some late, on one to four workers: the same bytes."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from distributed import Client, LocalCluster

import pipeline as sm
from pipeline.run import feed, segment
from pipeline.run.tile_task import run_tile
from pipeline.store import scan_ledger
from tests.scenes import save_unet, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS: dict[str, Any] = {"patch": 64, "tile": 16, "vectors": "geojson"}
_MOST_LATE_S = 0.05


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, a network, and an undisturbed run in `whole`."""
    folder = tmp_path_factory.mktemp("permutations")
    write_scene(folder / "scene.tif", smooth_values(2, (52, 60)), names=("b0", "b1"))
    save_unet(folder / "model", depth=2)
    sm.segment(folder / "scene.tif", folder / "model", folder / "whole", **OPTIONS)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Worker processes that outlive the runs; how many changes from run to run."""
    local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "threads_per_worker": 2}
    with LocalCluster(n_workers=1, processes=True, **local) as made:
        yield made


def late(job: Any, model: Any, tile: Any, attempt: int) -> Any:
    """A tile that begins late, or is told of late."""
    rng = random.Random(time.monotonic_ns())
    time.sleep(rng.choice([0, 0, rng.uniform(0, _MOST_LATE_S)]))
    done = run_tile(job, model, tile, attempt)
    time.sleep(rng.choice([0, 0, rng.uniform(0, _MOST_LATE_S)]))
    return done


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a3_order_copies_delays_and_workers_mean_nothing(
    ground: Path, cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    whole = segment.run_tiles
    given: list[int] = []

    def permuted(connection: Any, job: Any, model: Any, tiles: Any, **more: Any) -> None:
        copies = [copy for tile in tiles for copy in [tile] * rng.choices([1, 2, 3], [80, 15, 5])[0]]
        rng.shuffle(copies)
        given[:] = [tile.index for tile in copies]
        whole(connection, job, model, copies, **more)

    monkeypatch.setattr(segment, "run_tiles", permuted)
    monkeypatch.setattr(feed, "run_tile", late)
    copies = 0
    for seed in range(count):
        rng = random.Random(seed)
        workers = 1 + seed * 4 // count
        cluster.scale(workers)
        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=120)
        out = tmp_path / f"out-{seed}"
        sm.segment(ground / "scene.tif", ground / "model", out, cluster=cluster.scheduler_address, keep=True, **OPTIONS)
        assert sha256(out / "mask.tif") == sha256(ground / "whole" / "mask.tif"), seed
        assert sha256(out / "polygons.geojson") == sha256(ground / "whole" / "polygons.geojson"), seed
        scan = scan_ledger(out / ".scenemask" / "ledger")
        assert set(scan.records) == set(given)
        assert not scan.conflicts
        assert sum(f.read_bytes().count(b"\n") for f in (out / ".scenemask" / "ledger").iterdir()) == len(given)
        copies += len(given) - len(set(given))
    assert copies >= count
