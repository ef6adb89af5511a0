"""What one worker does for one tile: read, infer, write, record. Runs in any process; carries recipes only."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from distributed import get_worker

from pipeline.errors import ResourceError
from pipeline.infer import Predictor, device_thread, is_device_lost
from pipeline.model import make_engine
from pipeline.run.clusters.latecomers import require_seen
from pipeline.run.picture import Picture
from pipeline.run.travel import portable
from pipeline.scene import decode_on, limit_block_cache, shares_blocks
from pipeline.store import LedgerWriter, TileRecord, TileStore, quantize_probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.grid import Tile, Window
    from pipeline.model import Engine, EngineSpec, Model
    from pipeline.run.plan import Plan
    from pipeline.scene import Block, Limits, Scene
    from pipeline.store import Place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """All that a worker needs, with the model, to compute any tile of a scene. Sent once per worker."""

    key: str
    """Identity of the run; workers keep one predictor per key."""
    scene: Scene
    plan: Plan
    limits: Limits
    store: TileStore
    ledger: Place
    store_id: str | None = None
    """By which workers on other hosts know the store; None on this machine."""
    own_cluster: bool = False
    """Whether the workers were started for this run, so that their threads are ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileDone:
    """What the client hears of a finished tile."""

    record: TileRecord
    patches: int
    pixels: int


class _Reader:
    """Reads blocks of a scene and remembers the last one, for the preview.

    Args:
        scene: What is read.
        turns: The thread that reads for all tiles in flight; None where each tile's own thread does.
    """

    def __init__(self, scene: Scene, turns: ThreadPoolExecutor | None) -> None:
        self._scene = scene
        self._turns = turns
        self._last: tuple[Block, Window] | None = None

    def __call__(self, window: Window) -> Block:
        read = self._scene.read_block
        block = read(window) if self._turns is None else self._turns.submit(read, window).result()
        self._last = block, window
        return block

    def keep_picture(self, where: Place, core: Window) -> None:
        if self._last is not None:
            block, outer = self._last
            Picture.of(self._scene).save_part(where, core, block, outer)


def run_tile(job: Job, model: Model, tile: Tile, attempt: int) -> TileDone:
    """Compute one tile and record it. Doing it twice gives the same bytes.

    Args:
        job: The run.
        model: What it computes with; apart from the job, because the jobs of many scenes share it.
        tile: Which core.
        attempt: 1, or one more than the record that turned out to be wrong.

    Raises:
        Exception: What went wrong, in a form that reaches the client whole.
    """
    try:
        return _compute_tile(job, model, tile, attempt)
    except Exception as error:  # noqa: BLE001 - raised again below
        leave_broken_process(error)
        failure = portable(error)
    raise failure


def leave_broken_process(error: Exception) -> None:
    """End this process where the GPU's context has failed for good: a new one may do what this one never will again.

    Dask's nanny starts it and the tile is tried once more. A worker without a nanny is the client's own process, which
    stays and reports the error.
    """
    if is_device_lost(error):
        with contextlib.suppress(ValueError):  # no worker: called directly
            if get_worker().nanny is not None:
                os._exit(_DEVICE_LOST)


_DEVICE_LOST = 70
"""Exit status; any but 0 makes the nanny start the worker again."""


def _compute_tile(job: Job, model: Model, tile: Tile, attempt: int) -> TileDone:
    with _tools_for(job, model) as tools:
        return _compute_with(tools, job, model, tile, attempt)


def _compute_with(tools: _Tools, job: Job, model: Model, tile: Tile, attempt: int) -> TileDone:
    started = time.monotonic()
    if job.own_cluster and job.plan.engine.device == "cpu":
        _give_way()  # only now: threads inherit priority, and the device thread may just have been started
    digest, patches, splits = None, 0, 0
    legend, valid_px = model.spec.legend(), 0
    counts = np.zeros(len(legend), np.int64)
    wanted = job.limits.mask(tile.core)
    if wanted is None or wanted.any():
        reader = _Reader(job.scene, tools.turns)
        result = tools.predictor.predict(reader, tile.core, probabilities=job.plan.probabilities, output_valid=wanted)
        patches, splits = result.patches, result.splits
        reader.keep_picture(job.store.place, tile.core)
        counts, valid_px = legend.class_px(result.mask), int(np.count_nonzero(legend.is_valid(result.mask)))
        if valid_px:
            stored = None if result.probabilities is None else quantize_probabilities(result.probabilities)
            digest = job.store.write(tile.core, result.mask, stored)
    record = TileRecord(
        tile=tile.index,
        kind="empty" if digest is None else "written",
        mask_sha256=None if digest is None else digest.mask_sha256,
        prob_sha256=None if digest is None else digest.prob_sha256,
        plan_id=job.plan.digest,
        seconds=round(time.monotonic() - started, 3),
        valid_px=valid_px,
        class_px=tuple(int(n) for n in counts),
        splits=splits,
        attempt=attempt,
    )
    tools.ledger.append(record)
    return TileDone(record=record, patches=patches, pixels=tile.core.num_pixels)


def _give_way() -> None:
    """Lower the priority of this thread for the rest of its life, which ends with the run.

    Forwards take all cores, and a reader that interrupts one of their threads makes the others wait.
    """
    if not getattr(_thread, "gives_way", False):
        _thread.gives_way = True
        with contextlib.suppress(OSError, AttributeError):  # Linux has priorities per thread; others need none of this
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


_NICE = 5
_thread = threading.local()


def make_predictor(model: Model, plan: Plan, *, make: Callable[[], Engine] | None = None) -> Predictor:
    """What a plan describes; with an engine of its own unless `make` gives one."""
    return Predictor(
        model,
        plan.tiling,
        padding=plan.padding,
        taper=plan.taper,
        engine=plan.engine,
        tta=plan.tta,
        thread=device_thread(threads=plan.engine.threads),
        deterministic=plan.engine.deterministic,
        batch=plan.batch,
        make=make,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """An engine, and what it was made for."""

    model: weakref.ref[Model]
    what: tuple[object, ...]
    engine: Engine


_last_made: list[_Made] = []


def _engine_for(model: Model, spec: EngineSpec, patch_hw: tuple[int, int]) -> Engine:
    """An engine; that of the scene before, compiled already, where it serves. On the device thread."""
    what = spec, patch_hw
    held = next(iter(_last_made), None)
    if held is None or held.model() is not model or held.what != what:
        held = None  # nobody holds the former any more before the next one takes memory
        _last_made.clear()
        held = _Made(weakref.ref(model, lambda _: _last_made.clear()), what, make_engine(model, spec))
        _last_made.append(held)
    return held.engine


def drop_engine(*, unless_of: Model | None = None) -> None:
    """Give back the memory of an engine that waits for its next scene, unless it is this model's."""
    held = next(iter(_last_made), None)
    if held is not None and not _tools and (unless_of is None or held.model() is not unless_of):
        _last_made.clear()


@dataclass(slots=True)
class _Tools:
    """What this process holds for a run."""

    predictor: Predictor
    ledger: LedgerWriter
    turns: ThreadPoolExecutor | None
    """The thread that reads for all tiles; see `_turns_for`."""
    users: int = 0
    """Tiles that are being computed with them."""

    def close(self) -> None:
        """Nobody uses them any more."""
        if self.turns is not None:
            self.turns.shutdown()  # its datasets are closed with it
        self.ledger.close()


_guard = threading.Lock()
_tools: OrderedDict[str, _Tools] = OrderedDict()
"""By the run's key, those used last at the end."""
_MOST_RUNS = 4
"""Runs of a batch that a process holds tools for: one that ends, one that begins, and two small ones."""


def _turns_for(job: Job) -> ThreadPoolExecutor | None:
    """The thread that reads a scene's tiles one after the other; None where the tiles' own threads do.

    Forwards on a CPU take all cores: two readers side by side gain nothing there, and decode twice what neighbours
    share. Beside a GPU as many read as there are cores.
    """
    if job.plan.engine.device != "cpu" or not shares_blocks(job.scene):
        return None
    started = _give_way if job.own_cluster else None
    return ThreadPoolExecutor(1, thread_name_prefix="reader", initializer=started)


@contextlib.contextmanager
def _tools_for(job: Job, model: Model) -> Iterator[_Tools]:
    if job.key not in _tools:
        require_seen(job.store, job.store_id)
    with _guard:
        if job.key not in _tools:
            limit_block_cache(job.plan.block_cache_bytes)
            decode_on(job.plan.decoding_threads)
            engine, patch_hw = job.plan.engine, job.plan.tiling.patch_hw
            predictor = make_predictor(model, job.plan, make=lambda: _engine_for(model, engine, patch_hw))
            _tools[job.key] = _Tools(predictor, LedgerWriter(job.ledger), _turns_for(job))
        tools = _tools[job.key]
        tools.users += 1
        _tools.move_to_end(job.key)
        idle = [key for key, held in _tools.items() if not held.users][: max(0, len(_tools) - _MOST_RUNS)]
        closing = [_tools.pop(key) for key in idle]
    try:
        for old in closing:
            with contextlib.suppress(OSError, ResourceError):  # of another scene; what is lost is computed again
                old.close()
        yield tools
    finally:
        with _guard:
            tools.users -= 1


def forget(key: str = "", *, keep_engine: bool = False) -> None:
    """Close what this process holds for the runs whose key begins so, and the engine with the last of them.

    Args:
        key: Of the runs; all if not given.
        keep_engine: For the next scene, as long as the model lives.
    """
    with _guard:
        closing = [_tools.pop(name) for name in list(_tools) if name.startswith(key)]
        if not keep_engine:
            drop_engine()
    for tools in closing:
        tools.close()
