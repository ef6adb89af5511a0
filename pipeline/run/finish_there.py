"""A scene's files, made by a worker: verified, put together, traced and staged; the client moves them into place."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import Interrupted
from pipeline.infer import give_back_freed
from pipeline.run.demand import budget_left
from pipeline.run.events import Event, StageFinished
from pipeline.run.finish import Finished, Finisher
from pipeline.run.travel import portable
from pipeline.run.verify import Verification, Verifier
from pipeline.store import Staging, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.model import Model
    from pipeline.run.plan import Plan
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Aoi, Scene
    from pipeline.store import TileRecord, TileStore


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finish:
    """The recipe: all tiles are recorded."""

    scene: Scene
    settings: SegmentSettings
    plan: Plan
    aoi: Aoi | None
    store: TileStore
    records: Mapping[int, TileRecord]
    out_dir: Path
    scratch: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What lies in the staging folder."""

    staging: Staging
    finished: Finished
    verified: Verification | None
    timings: dict[str, float]
    """Stage -> seconds."""


def finish_there(recipe: Finish, model: Model) -> Made:
    """Make a scene's files. Doing it twice, one after the other, gives the same bytes.

    Raises:
        Exception: What went wrong, in a form that reaches the client whole.
    """
    try:
        with _may_be_abandoned() as check:
            return _make(recipe, model, check)
    except Exception as error:  # noqa: BLE001 - raised again below
        failure = portable(error)
    raise failure


def abandon() -> None:
    """Let whatever this process is finishing end soon, unfinished."""
    for ending in _endings:
        ending.set()


_endings: list[threading.Event] = []


class _Check:
    """Called often; raises when the batch is to stop."""

    def __init__(self, ending: threading.Event) -> None:
        self._ending = ending

    def __call__(self) -> None:
        if self._ending.is_set():
            raise Interrupted("the batch is stopping", code="RU-001", title="Interrupted, can be resumed")


@contextlib.contextmanager
def _may_be_abandoned() -> Iterator[_Check]:
    ending = threading.Event()
    _endings.append(ending)
    try:
        yield _Check(ending)
    finally:
        _endings.remove(ending)


def _make(recipe: Finish, model: Model, check: _Check) -> Made:
    timings: dict[str, float] = {}

    def hear(event: Event) -> None:
        if isinstance(event, StageFinished):
            timings[event.name] = round(event.seconds, 3)

    verified = None
    if recipe.settings.verify:
        started = time.monotonic()
        give_back_freed()
        verified = Verifier(
            scene=recipe.scene,
            model=model,
            plan=recipe.plan,
            aoi=recipe.aoi,
            store=recipe.store,
            budget_bytes=budget_left(recipe.settings, recipe.plan.engine.device),
            check_stop=check,
        ).run(recipe.records, count=recipe.settings.verify)
        timings["verify"] = round(time.monotonic() - started, 3)
    apart = f"-{secrets.token_hex(8)}"  # a worker that was given up may still be making the same files
    staging = Staging(recipe.out_dir, apart=apart)
    finished = Finisher(
        scene=recipe.scene,
        model=model,
        settings=recipe.settings,
        plan=recipe.plan,
        store=recipe.store,
        records=recipe.records,
        staging=staging,
        scratch=private_folder(recipe.scratch / f"polygons{apart}"),
        tell=hear,
        check=check,
    ).run()
    return Made(staging=staging, finished=finished, verified=verified, timings=timings)
