"""A scene's files, made by a worker: verified, put together, traced and staged; the client moves them into place."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import Interrupted
from pipeline.run.clusters.latecomers import require_seen
from pipeline.run.events import Event, StageFinished
from pipeline.run.results import Recipe, make_files
from pipeline.run.travel import portable
from pipeline.store import Staging, private_folder
from pipeline.store.runfile import SCRATCH_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.model import Model
    from pipeline.run.finish import Finished
    from pipeline.run.verify import Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What lies in the staging folder, or was sent."""

    staging: Staging | None
    """None where a worker has sent them to a bucket."""
    etags: dict[str, str] | None
    """Name -> ETag of what was sent."""
    finished: Finished
    verified: Verification | None
    timings: dict[str, float]
    """Stage -> seconds."""


def finish_there(recipe: Recipe, model: Model) -> Made:
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


def _make(recipe: Recipe, model: Model, check: _Check) -> Made:
    timings: dict[str, float] = {}

    def hear(event: Event) -> None:
        if isinstance(event, StageFinished):
            timings[event.name] = round(event.seconds, 3)

    require_seen(recipe.store, recipe.store_id, folder=None if recipe.delivery else recipe.out_dir / SCRATCH_FOLDER)
    apart = f"-{secrets.token_hex(8)}"  # a worker that was given up may still be making the same files
    with contextlib.ExitStack() as stack:
        out_dir, scratch = recipe.out_dir, recipe.scratch
        if recipe.delivery is not None:
            out_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scenemask-")))
            scratch = out_dir / SCRATCH_FOLDER
        staging = Staging(out_dir, apart=apart)
        finished, verified = make_files(
            recipe, model, staging=staging, scratch=private_folder(scratch / f"polygons{apart}"), tell=hear, check=check
        )
        etags = None if recipe.delivery is None else recipe.delivery.send(staging.folder, finished.names)
    return Made(
        staging=staging if etags is None else None,
        etags=etags,
        finished=finished,
        verified=verified,
        timings=timings,
    )
