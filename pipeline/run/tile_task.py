"""What one worker does for one tile: read, infer, write, record. Runs in any process; carries recipes only."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.infer import Predictor, device_thread
from pipeline.scene import limit_block_cache
from pipeline.store import LedgerWriter, TileRecord, TileStore, quantize_probabilities

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import Tile
    from pipeline.model import Model
    from pipeline.run.plan import Plan
    from pipeline.scene import Aoi, Scene


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """Everything that a worker needs to compute any tile of a run. Sent once per worker."""

    key: str
    """Identity of the run; workers keep one predictor per key."""
    scene: Scene
    model: Model
    plan: Plan
    aoi: Aoi | None
    store: TileStore
    ledger: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TileDone:
    """What the client hears of a finished tile."""

    record: TileRecord
    patches: int
    pixels: int


_guard = threading.Lock()
_predictors: dict[str, Predictor] = {}
_ledgers: dict[str, LedgerWriter] = {}


def run_tile(job: Job, tile: Tile, attempt: int) -> TileDone:
    """Compute one tile and record it. Doing it twice gives the same bytes.

    Args:
        job: The run.
        tile: Which core.
        attempt: 1, or one more than the record that turned out to be wrong.
    """
    started = time.monotonic()
    predictor, ledger = _tools(job)
    digest, patches = None, 0
    counts = np.zeros(job.plan.num_classes, np.int64)
    wanted = None if job.aoi is None else job.aoi.mask(tile.core)
    if wanted is None or wanted.any():
        result = predictor.predict(
            job.scene.read_block, tile.core, probabilities=job.plan.probabilities, output_valid=wanted
        )
        patches = result.patches
        counts = class_counts(result.mask, job.plan.num_classes)
        if counts.any():
            stored = None if result.probabilities is None else quantize_probabilities(result.probabilities)
            digest = job.store.write(tile.core, result.mask, stored)
    record = TileRecord(
        tile=tile.index,
        kind="empty" if digest is None else "written",
        mask_sha256=None if digest is None else digest.mask_sha256,
        prob_sha256=None if digest is None else digest.prob_sha256,
        plan_id=job.plan.digest,
        seconds=round(time.monotonic() - started, 3),
        valid_px=int(counts.sum()),
        class_px=tuple(int(n) for n in counts),
        attempt=attempt,
    )
    ledger.append(record)
    return TileDone(record=record, patches=patches, pixels=tile.core.num_pixels)


def class_counts(mask: NDArray[np.generic], num_classes: int) -> NDArray[np.int64]:
    """Pixels per class; nodata is not counted."""
    return np.bincount(mask.ravel(), minlength=num_classes)[:num_classes].astype(np.int64)


def make_predictor(model: Model, plan: Plan) -> Predictor:
    """The engine that a plan describes."""
    return Predictor(
        model,
        plan.tiling,
        padding=plan.padding,
        taper=plan.taper,
        device=plan.device,
        precision=plan.precision,
        thread=device_thread(threads=plan.threads),
    )


def forget(key: str) -> None:
    """Close what this process holds for a run."""
    with _guard:
        _predictors.pop(key, None)
        ledger = _ledgers.pop(key, None)
    if ledger is not None:
        ledger.close()


def _tools(job: Job) -> tuple[Predictor, LedgerWriter]:
    with _guard:
        if job.key not in _predictors:
            limit_block_cache()
            _predictors[job.key] = make_predictor(job.model, job.plan)
            _ledgers[job.key] = LedgerWriter(job.ledger)
        return _predictors[job.key], _ledgers[job.key]
