"""What a tile costs beside its work: null tiles, nothing read or written; and what a second worker process brings.

python -m tests.bench.scheduling [--only cost|scenes|sizes|simulation|workers] [--repeats N]
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import psutil
import rasterio
import torch
from distributed import Client

from pipeline.grid import Tile, Window
from pipeline.run import feed
from pipeline.run.batch import batch
from pipeline.run.cluster import Connection, connect
from pipeline.run.clusters.local import in_process
from pipeline.run.events import Event, StageAdvanced, StageStarted, silent
from pipeline.run.segment import segment
from pipeline.run.settings import make_settings
from pipeline.run.stop import StopFlag
from pipeline.run.tasks import Watch
from pipeline.run.tile_task import TileDone
from pipeline.store import Folder, TileRecord, TileRecords
from tests.bench.common import OUT, interleaved, publish, scene_of, unet

if TYPE_CHECKING:
    from collections.abc import Callable

_TILES = 50_000
_WARM = 10_000
"""Tiles after which the logs of Dask, which have a bound, are full."""
_BARE = 5_000
_PATCH_PX, _HALO_PX = 1216, 96


def _null_tile(_job: object, _model: object, tile: Tile, attempt: int) -> TileDone:
    """What a tile leaves in the client, without a tile."""
    record = TileRecord(
        tile=tile.index,
        kind="written",
        mask_sha256="0" * 64,
        plan_id="0" * 16,
        seconds=0.0,
        valid_px=1,
        class_px=(1, 0, 0, 0),
        attempt=attempt,
    )
    return TileDone(record=record, patches=1, pixels=1)


class _NullScene:
    name = "null"


class _NullJob:
    key, scene = "null", _NullScene()


def _ours(connection: Connection, count: int) -> tuple[float, int, int]:
    """(milliseconds per tile, bytes by which client and scheduler grew until the logs were full, and from then on)."""
    tiles = [Tile(index=i, core=Window(row_off=i, col_off=0, height=1, width=1)) for i in range(count)]
    kept = TileRecords(plan_id="0" * 16, num_tiles=count, num_classes=4)
    gc.collect()
    seen = [psutil.Process().memory_info().rss]

    def done(one: TileDone) -> None:
        kept[one.record.tile] = one.record
        if len(kept) in {min(_WARM, count), count}:
            seen.append(psutil.Process().memory_info().rss)

    started = time.perf_counter()
    feed.run_tiles(
        connection,
        _NullJob(),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        tiles,
        attempts={},
        on_done=done,
        watch=Watch(stop=StopFlag(), tell=silent, stuck_after_s=300, dump_to=Folder(OUT)),
    )
    assert len(kept) == count
    return 1e3 * (time.perf_counter() - started) / count, seen[1] - seen[0], seen[-1] - seen[1]


def _bare(connection: Connection, count: int) -> float:
    """Milliseconds per future, as plain Dask has them: submitted all at once and gathered."""
    started = time.perf_counter()
    futures = connection.client.map(_nothing, range(count), pure=False)
    connection.client.gather(futures)
    return 1e3 * (time.perf_counter() - started) / count


def _nothing(number: int) -> int:
    return number


def measure_cost(repeats: int) -> None:
    """Milliseconds and bytes per null tile, in one process and over two."""
    feed.run_tile = _null_tile  # type: ignore[assignment]
    feed.forget = lambda _key, **_: None  # type: ignore[assignment]
    rows, facts = [], {}
    for name, workers in (("in one process", 1), ("over two worker processes", 2)):
        with connect(make_settings({"workers": workers})) as connection:
            _ours(connection, 500), _bare(connection, 500)
            grown: list[tuple[int, int]] = []

            def ours(connection: Connection = connection, grown: list[tuple[int, int]] = grown) -> float:
                per_tile, warm, more = _ours(connection, _TILES)
                grown.append((warm, more))
                return per_tile

            work: dict[str, Callable[[], float]] = {"ours": ours, "bare": lambda c=connection: _bare(c, _BARE)}
            medians = {key: values[0] for key, values in interleaved(repeats, **work).items()}
            ratio = f"{medians['ours'] / medians['bare']:.2f}"
            warm, more = (max(mb) / 1e6 for mb in zip(*grown, strict=True))
            rows += [
                (f"milliseconds per null tile, {_TILES:,} tiles, {name}", f"**{medians['ours']:.2f}**", "≤ 6"),
                (f"÷ a bare future of the same run, all submitted at once, {name}", ratio, ""),
                (
                    f"growth of client and scheduler with {_TILES:,} tiles after the first {_WARM:,}, {name}",
                    f"**{more:.1f} MB** (in those: {warm:.1f} MB)",
                    "flat",
                ),
            ]
            facts[name] = {"ms": medians, "grown_bytes": grown}
    publish("scheduling", _TITLE, f"make bench-scheduling (--repeats {repeats})", rows, facts, part="cost")


def measure_sizes() -> None:
    """Growth with the number of tiles."""
    feed.run_tile = _null_tile  # type: ignore[assignment]
    feed.forget = lambda _key, **_: None  # type: ignore[assignment]
    rows, facts = [], {}
    for count in (5_000, 20_000, 80_000):
        with connect(make_settings({})) as connection:
            _ours(connection, 500)
            per_tile, warm, more = _ours(connection, count)
        grown = warm + more
        rows.append((f"{count:,} tiles: ms per tile; MB grown", f"{per_tile:.2f}; {grown / 1e6:.1f}", ""))
        facts[str(count)] = {"ms": per_tile, "grown_bytes": grown}
    publish("scheduling", _TITLE, "make bench-scheduling (--only sizes)", rows, facts, part="sizes")


def _sleeping_tile(_job: object, _model: object, tile: Tile, attempt: int) -> TileDone:
    """A tile that takes a second of somebody else's device."""
    time.sleep(1.0)
    return _null_tile(_job, _model, tile, attempt)


def measure_simulation() -> None:
    """How many workers one client and scheduler keep busy: each tile sleeps for a second."""
    feed.run_tile = _sleeping_tile  # type: ignore[assignment]
    feed.forget = lambda _key, **_: None  # type: ignore[assignment]
    rows, facts = [], {}
    for workers in (1, 8, 64, 256, 512):
        count = 20 * workers
        with in_process(workers) as cluster, Client(cluster, set_as_default=False) as client:
            per_tile, *_ = _ours(Connection(client, slots=workers, in_process=True), count)
        share = 1000.0 / workers / per_tile
        rows.append((
            f"{workers} workers, tiles of one second: tiles per second, share of what they could do",
            f"{1000 / per_tile:.1f}, {share:.0%}",
            "",
        ))  # fmt: skip
        facts[str(workers)] = {"ms_per_tile": per_tile, "share": share}
    publish("scheduling", _TITLE, "make bench-scheduling (--only simulation)", rows, facts, part="simulation")


def measure_scenes(count: int = 100) -> None:
    """What a scene of a batch costs beside its pixels: scenes of 256 px, all files but polygons, on one machine."""
    folder = OUT / "small-scenes"
    folder.mkdir(exist_ok=True)
    with rasterio.open(scene_of(2048)) as whole:
        profile = {**whole.profile, "height": 256, "width": 256, "tiled": False}
        for key in ("blockxsize", "blockysize"):
            profile.pop(key, None)
        for number in range(count):
            row, col = divmod(number, 8)
            data = whole.read(window=((256 * (row % 8), 256 * (row % 8) + 256), (256 * col, 256 * col + 256)))
            with rasterio.open(folder / f"s{number}.tif", "w", **profile) as file:
                file.write(data)
                file.descriptions = whole.descriptions
    shutil.rmtree(OUT / "small-out", ignore_errors=True)
    model = unet()
    started = time.perf_counter()
    made = batch([folder / "*.tif"], model, OUT / "small-out", vectors="none", precision="float32", backend="torch")
    seconds = time.perf_counter() - started
    assert made.counts["done"] == count
    one = json.loads((OUT / "small-out" / "s0" / "run.json").read_text())
    rows = [
        (f"batch of {count} scenes of 256 px, whole: ms per scene", f"{1e3 * seconds / count:.0f}", ""),
        ("— of them inside workers, files of one scene", f"{1e3 * sum(one['timings_s'].values()):.0f}", ""),
    ]
    facts = {"seconds": seconds, "count": count, "timings_s": one["timings_s"]}
    publish("scheduling", _TITLE, "make bench-scheduling (--only scenes)", rows, facts, part="scenes")


def _steady_rate(workers: int, number: int) -> float:
    """Pixels per second of the inference stage from the first tile that ends to the last, one thread per worker."""
    times: list[tuple[float, int]] = []

    def hear(event: Event) -> None:
        if isinstance(event, StageStarted) and event.name == "infer":
            times.append((time.perf_counter(), 0))
        if isinstance(event, StageAdvanced) and event.name == "infer":
            times.append((time.perf_counter(), event.pixels))

    out = OUT / "scaling" / f"{workers}-{number}"
    segment(
        scene_of(8192), unet(), out, overwrite=True, listener=hear, workers=workers, backend="torch",
        precision="float32", patch=_PATCH_PX, tile=_PATCH_PX - 2 * _HALO_PX, vectors="none",
    )  # fmt: skip
    ended = times[1 + workers :]
    return sum(pixels for _, pixels in ended) / (ended[-1][0] - times[workers][0])


def _forwards(seconds: float, rate: Any) -> None:
    """Bare forwards over patches of the same size in a process of its own."""
    torch.set_num_threads(1)
    from pipeline.model import EngineSpec, make_engine

    spec = EngineSpec(backend="torch", device="cpu", precision="float32", threads=1, one_size=True, trim_px=_HALO_PX)
    engine, x = make_engine(unet(), spec), torch.randn(1, 4, _PATCH_PX, _PATCH_PX)
    engine.label(x)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        engine.label(x)
        count += 1
    rate.value = count * (_PATCH_PX - 2 * _HALO_PX) ** 2 / (time.perf_counter() - started)


def _bare_rate(seconds: float = 20.0) -> float:
    """Core pixels per second of two such processes at a time."""
    context = multiprocessing.get_context("spawn")
    rates = [context.Value("d", 0.0) for _ in range(2)]
    running = [context.Process(target=_forwards, args=(seconds, rate)) for rate in rates]
    for process in running:
        process.start()
    for process in running:
        process.join()
    return sum(rate.value for rate in rates)


def measure_workers(repeats: int) -> None:
    """Two worker processes against two bare processes, PyTorch with one thread in each."""
    unet(), scene_of(8192)
    count = iter(range(100))
    work: dict[str, Callable[[], float]] = {"two_workers": lambda: _steady_rate(2, next(count)), "two_bare": _bare_rate}
    medians = {name: values[0] for name, values in interleaved(repeats, **work).items()}
    ratio = medians["two_workers"] / medians["two_bare"]
    shown = f"**{ratio:.2f}** ({medians['two_workers'] / 1e6:.2f} ÷ {medians['two_bare'] / 1e6:.2f} Mpx/s)"
    rows = [("two worker processes ÷ two bare processes, width 16, float32, one thread each", shown, "≥ 0.9")]
    publish("scheduling", _TITLE, "make bench-scheduling (--only workers)", rows, {"px_per_s": medians}, part="workers")


_TITLE = "What a tile costs beside its work, and what a second worker brings"


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["cost", "scenes", "sizes", "simulation", "workers"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if given.only in (None, "cost"):
        measure_cost(given.repeats)
    if given.only in (None, "sizes"):
        measure_sizes()
    if given.only in (None, "scenes"):
        measure_scenes()
    if given.only in (None, "simulation"):
        measure_simulation()
    if given.only in (None, "workers"):
        measure_workers(given.repeats)


if __name__ == "__main__":
    main()
