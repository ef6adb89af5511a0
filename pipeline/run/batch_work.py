"""Keeps a cluster busy with the scenes of a batch: the tiles of the next follow those of the last without a gap.

All decisions are made on the client's thread: which scene is opened, what a worker does next, how a scene ended.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import secrets
import shutil
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, Interrupted, OutputError, PipelineError
from pipeline.run.batch_basis import batch_basis, batch_device
from pipeline.run.cluster import admit, connect
from pipeline.run.events import BatchAdvanced, BatchStarted, Event, Listener, Notice, SceneEnded
from pipeline.run.failures import as_failure
from pipeline.run.feed import TileFeed
from pipeline.run.finish_there import Made, abandon, finish_there
from pipeline.run.identity import refuse_differences
from pipeline.run.leftovers import finish_cleaning, remove_staged
from pipeline.run.outcomes import Outcome, Outcomes
from pipeline.run.output import BucketStaging, Output, output_at, tiles_under
from pipeline.run.plan import plan_from
from pipeline.run.resolve import resolve_scene
from pipeline.run.scene_run import Ongoing, SceneRun, adopt, begin, commit, prepare
from pipeline.run.settings import access_of
from pipeline.run.tasks import Task, Watch, run_tasks
from pipeline.run.tile_task import forget
from pipeline.store import Folder, RunLock, create_output_folder, foreign_output, private_folder
from pipeline.store.runfile import RUN_FILE, SCRATCH_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from distributed import Future

    from pipeline.location import Location
    from pipeline.model import Model
    from pipeline.run.basis import Basis
    from pipeline.run.cluster import Connection
    from pipeline.run.scene_list import SceneRow
    from pipeline.run.settings import SegmentSettings
    from pipeline.run.share import Share
    from pipeline.run.stop import StopFlag
    from pipeline.run.tile_task import TileDone
    from pipeline.store import OutputState

_LOOKING_THREADS = 8
_MOST_OPEN = 256
"""Scenes that are locked at a time."""
_HELD_ELSEWHERE = frozenset({"OU-002", "OU-003"})
_PATIENCE_S = 600.0
"""For the lock of a scene whose tiles are shared: each holder only makes or reads a plan."""


@dataclass(slots=True, kw_only=True)
class _Member:
    """A scene that is being worked on."""

    row: SceneRow
    ongoing: Ongoing
    output: Output
    lock: RunLock
    since: float
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """Releases the scene's locks."""
    feed: TileFeed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crew:
    """What computes."""

    connection: Connection
    model: Future
    basis: Basis
    stop: StopFlag


@dataclass(slots=True, kw_only=True)
class BatchWork:
    """Looks through the list, then computes what is left of it."""

    root: Path | Location
    """What the scenes' outputs lie in."""
    rows: list[SceneRow]
    model: Model
    settings: SegmentSettings
    outcomes: Outcomes
    max_failures: float
    """No more scenes are begun once more than these have failed."""
    retry_failed: bool
    tiles_of: Share | None = None
    """Compute only these tiles of each scene, beside others who compute theirs; nobody then makes files."""
    listener: Listener
    passed_on: int = 0
    """Scenes that another process holds."""
    _pixels: dict[str, int] = field(default_factory=dict)
    """Name -> pixels of the scenes that can be opened."""
    _left: deque[SceneRow] = field(default_factory=deque)
    _open: dict[str, _Member] = field(default_factory=dict)
    _feeding: deque[_Member] = field(default_factory=deque)
    """Open scenes with tiles to give out."""
    _finishing: deque[_Member] = field(default_factory=deque)
    """Open scenes whose tiles are all recorded."""
    _tally: Counter[str] = field(default_factory=Counter)
    """Status -> scenes; told often, so it is kept up."""
    _failed_now: int = 0
    _done_px: int = 0
    _left_px: dict[str, int] = field(default_factory=dict)
    """Name -> pixels still to compute, as far as is known."""
    _pixels_left: int = 0
    """Sum of them."""
    _crew: _Crew | None = None

    def run(self, stop: StopFlag) -> None:
        """Everything, until it is done or a signal comes."""
        with ThreadPoolExecutor(_LOOKING_THREADS) as pool:
            todo = [row for row, wanted in zip(self.rows, pool.map(self._is_to_do, self.rows), strict=True) if wanted]
        names = {row.name for row in todo}
        self._tally.update("left" if row.name in names else self.outcomes.all[row.name].status for row in self.rows)
        self._look_at(todo, stop)
        self._left.extend(row for row in todo if row.name in self._pixels)
        for name, pixels in self._pixels.items():
            self._has_left(name, pixels)
        total_px = sum(self._pixels.values())
        self.listener(BatchStarted(scenes=len(self.rows), to_do=len(self._left), pixels=total_px))
        if self._left and not self._too_many():
            try:
                self._compute(stop, total_px)
            finally:
                for member in self._open.values():
                    member.held.close()
        ended = len(self.rows) - self.tally()["left"]
        stop.raise_if_set(f"{ended} of {len(self.rows)} scenes have ended, and finished tiles of the others are kept")

    def tally(self) -> dict[str, int]:
        """How many scenes are `done`, `empty`, `failed` and `left`."""
        return {status: self._tally[status] for status in ("done", "empty", "failed", "left")}

    def failures(self) -> Iterator[Outcome]:
        """Of the scenes that have failed."""
        known = (self.outcomes.all.get(row.name) for row in self.rows)
        return (one for one in known if one is not None and one.status == "failed")

    def _is_to_do(self, row: SceneRow) -> bool:
        before = self.outcomes.all.get(row.name)
        if before is None:
            return True
        if before.status == "failed":
            return before.transient or self.retry_failed
        return not (self.outcomes.root / row.name).has(RUN_FILE)  # somebody removed it

    def _too_many(self) -> bool:
        return self._failed_now > self.max_failures

    def _look_at(self, rows: Sequence[SceneRow], stop: StopFlag) -> None:
        """Open every scene, headers only, before any work: what cannot be used is told at once, all of it."""

        def look(row: SceneRow) -> int | PipelineError:
            if stop.event.is_set():
                return 0
            try:
                return math.prod(resolve_scene(row.scene, self.model, self.settings).geobox.shape)
            except PipelineError as error:
                return error
            except Exception as error:  # noqa: BLE001 - one scene's, not the batch's
                return _bug(error)

        with ThreadPoolExecutor(_LOOKING_THREADS) as pool:
            found = list(pool.map(look, rows))
        stop.raise_if_set("the scenes were looked at; nothing was computed")
        for row, one in zip(rows, found, strict=True):
            if isinstance(one, PipelineError):
                self._end(self._failure(row, one))
            else:
                self._pixels[row.name] = one

    def _compute(self, stop: StopFlag, total_px: int) -> None:
        folder, tiles = self.outcomes.folder, tiles_under(self.root, self.settings)
        with contextlib.ExitStack() as stack:
            mine = None
            if isinstance(folder, Folder):
                mine = private_folder(folder.path / f"process-{secrets.token_hex(8)}")
                stack.callback(shutil.rmtree, mine, ignore_errors=True)
            connecting = connect(
                self.settings,
                device=batch_device(self.settings),
                keys=mine,
                seen=(folder,),
                check_stop=lambda: stop.raise_if_set("nothing was computed"),
            )
            connection = stack.enter_context(connecting)
            basis = self._basis(connection, total_px, stop)
            if basis is None:
                return
            admit(connection, engine=basis.engine.spec, seen=(tiles,))
            self._crew = _Crew(connection=connection, model=connection.share(self.model), basis=basis, stop=stop)
            watch = Watch(stop=stop, tell=self.listener, stuck_after_s=self.settings.stuck_after, dump_to=folder)
            try:
                run_tasks(connection, self._next, watch=watch)
            finally:
                with contextlib.suppress(OSError, TimeoutError, RuntimeError):
                    connection.client.run(abandon, on_error="ignore")
                    connection.client.run(forget, on_error="ignore")

    def _basis(self, connection: Connection, total_px: int, stop: StopFlag) -> Basis | None:
        """What all scenes are planned on, sampled on the largest that can be read; None where none can."""
        while self._left:
            row = max(self._left, key=lambda row: self._pixels[row.name])
            try:
                return batch_basis(
                    connection,
                    resolve_scene(row.scene, self.model, self.settings),
                    self.model,
                    self.settings,
                    folder=self.outcomes.folder,
                    num_pixels=total_px,
                    check_stop=lambda: stop.raise_if_set("nothing was computed"),
                )
            except PipelineError as error:
                if not isinstance(error, InputError) and not error.code.startswith("ST-"):
                    raise
                self._left.remove(row)
                self._end(self._failure(row, error))
        return None

    def _next(self) -> Task | None:
        """What a worker does next: end a scene, else a tile; scenes are opened ahead of the need."""
        while self._left and not self._too_many() and self._needs_more():
            self._start(self._left.popleft())
        while self._feeding and not self._finishing:
            feed = self._feeding[0].feed
            task = None if feed is None else feed.next()
            if task is not None:
                return task
            self._feeding.popleft()
        return self._finish(self._finishing.popleft()) if self._finishing else None

    def _needs_more(self) -> bool:
        """Whether another scene is opened now: fewer tiles than keep the workers busy, and not too many scenes."""
        assert self._crew is not None
        waiting = sum(member.feed.left for member in self._feeding if member.feed is not None)
        return waiting < 2 * self._crew.connection.slots and len(self._open) < _MOST_OPEN

    def _start(self, row: SceneRow) -> None:
        """Lock, plan and look into the ledger of one scene; what goes wrong is its own failure."""
        with contextlib.ExitStack() as stack:
            try:
                output = output_at(self.root / row.name, access_of(self.settings), self.settings.scratch)
                stack.callback(output.tidy)
                output.refuse_input(row.scene)
                state = output.inspect(overwrite=False)
                run = self._prepare(row, output, state)
                if state.kind == "complete":
                    self._ended_before(row, run, output, state)
                    return
                lock = RunLock(create_output_folder(output.folder))
                self._hold(stack, lock, output)
                now = output.inspect(overwrite=False)
                if now != state:  # another process ended or began it before we had the lock
                    run = self._prepare(row, output, now)
                    if now.kind == "complete":
                        self._ended_before(row, run, output, now)
                        return
                self._follow(row, run, output, lock, stack)
            except Interrupted:
                raise
            except PipelineError as error:
                self._end(self._failure(row, error))
            except Exception as error:  # noqa: BLE001 - a disk that was away for a moment costs one scene, not the batch
                self._end(self._failure(row, _bug(error)))

    def _hold(self, stack: contextlib.ExitStack, lock: RunLock, output: Output) -> None:
        """The scene's locks; those who share its tiles hold them for a moment each, and wait for each other."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with contextlib.ExitStack() as held:
                    held.enter_context(lock)
                    held.enter_context(output.locked())
                    stack.push(held.pop_all())
            except OutputError:
                if self.tiles_of is None or time.monotonic() > until:
                    raise
                assert self._crew is not None
                self._crew.stop.raise_if_set("finished tiles are kept")
                time.sleep(random.uniform(0.2, 1.0))  # noqa: S311 - so that they do not come all at once again
            else:
                return

    def _prepare(self, row: SceneRow, output: Output, state: OutputState) -> SceneRun:
        return prepare(row.scene, self.model, self.settings, state, output=output, overwrite=False, listener=self._hear)

    def _ended_before(self, row: SceneRow, run: SceneRun, output: Output, state: OutputState) -> None:
        record: dict[str, Any] = dict(state.run or {})
        if "identity" not in record or "status" not in record:
            raise foreign_output(output.place, state)
        refuse_differences(record["identity"], run.identity, explicit=run.explicit, where=output.place)
        finish_cleaning(output, access_of(self.settings))
        self._end(self._success(row, record, seconds=0.0))

    def _follow(self, row: SceneRow, run: SceneRun, output: Output, lock: RunLock, stack: contextlib.ExitStack) -> None:
        """Begin or continue a scene that is locked, by what `stack` will release."""
        assert self._crew is not None
        scratch = output.folder / SCRATCH_FOLDER
        ongoing = adopt(run, scratch, overwrite=False, alone=self.tiles_of is None)
        if ongoing is None:
            ongoing = begin(run, plan_from(run.scene, self.model, run.settings, self._crew.basis), scratch)
        if self.tiles_of is not None:
            stack.close()  # others wait for it, to read the plan that now lies there
        missing = ongoing.read_ledger(self._crew.stop, share=self.tiles_of)
        self._has_left(row.name, sum(tile.core.num_pixels for tile in missing))
        member = _Member(row=row, ongoing=ongoing, output=output, lock=lock, since=time.monotonic())
        member.feed = TileFeed(
            self._crew.connection,
            ongoing.job(),
            self._crew.model,
            missing,
            attempts=ongoing.attempts,
            on_done=functools.partial(self._tile_done, member),
            on_end=functools.partial(self._tiles_ended, member),
        )
        member.held = stack.pop_all()  # released when the scene has ended
        self._open[row.name] = member
        self._feeding.append(member)

    def _tile_done(self, member: _Member, done: TileDone) -> None:
        member.ongoing.records[done.record.tile] = done.record
        self._done_px += done.pixels
        self._has_left(member.row.name, self._left_px[member.row.name] - done.pixels)
        self.listener(BatchAdvanced(pixels=self._done_px, pixels_left=self._pixels_left, **self._counts()))

    def _tiles_ended(self, member: _Member) -> None:
        """All tiles are recorded, or some have failed and the others are kept."""
        assert member.feed is not None
        try:
            failure = member.feed.failure()
        except Exception as error:  # noqa: BLE001 - a mistake of ours costs one scene, not the batch
            failure = _bug(error)
        if failure is not None:
            self._fail(member, failure)
        elif self.tiles_of is None:
            self._finishing.append(member)
        else:
            self._close(member)

    def _finish(self, member: _Member) -> Task:
        assert self._crew is not None
        ongoing = member.ongoing
        remove_staged(ongoing.scratch)
        return Task(
            name=f"files of {member.row.name}",
            function=finish_there,
            arguments=(ongoing.recipe(member.output.delivery()), self._crew.model),
            on_done=functools.partial(self._finished, member),
            on_failed=functools.partial(self._not_finished, member),
            first=True,
        )

    def _finished(self, member: _Member, made: Made) -> None:
        """The files are staged: move them into place."""
        ongoing = member.ongoing
        seconds = time.monotonic() - member.since
        ongoing.run.timings.update(made.timings)
        try:
            record = commit(ongoing, made.finished, made.verified, self._mover(member, made), member.lock)
        except PipelineError as error:
            self._fail(member, error)
            return
        except Exception as error:  # noqa: BLE001 - one scene's, not the batch's
            self._fail(member, _bug(error))
            return
        self._close(member)
        self._end(self._success(member.row, record, seconds=seconds))

    def _mover(self, member: _Member, made: Made) -> Callable[[Sequence[str], Mapping[str, object]], None]:
        """What moves the files into place, from where the worker has left them."""
        if made.staging is not None:
            return made.staging.commit
        staging = member.output.staging()
        assert isinstance(staging, BucketStaging)
        return functools.partial(staging.commit, etags=made.etags)

    def _not_finished(self, member: _Member, error: BaseException) -> None:
        try:
            failure = as_failure(error, where=f"files of {member.row.name}")
        except Exception as unforeseen:  # noqa: BLE001 - a mistake of ours costs one scene, not the batch
            failure = _bug(unforeseen)
        self._fail(member, failure)

    def _fail(self, member: _Member, error: PipelineError) -> None:
        self._close(member)
        self._end(self._failure(member.row, error, seconds=time.monotonic() - member.since))

    def _close(self, member: _Member) -> None:
        del self._open[member.row.name]
        member.held.close()

    def _success(self, row: SceneRow, record: dict[str, Any], *, seconds: float) -> Outcome:
        return Outcome(
            name=row.name,
            status="empty" if record["status"] == "empty" else "done",
            attempt=self._attempt(row),
            seconds=round(seconds, 3),
            pixels=self._pixels[row.name],
        )

    def _failure(self, row: SceneRow, error: PipelineError, *, seconds: float = 0.0) -> Outcome:
        return Outcome.of_failure(row.name, error, attempt=self._attempt(row), seconds=round(seconds, 3))

    def _attempt(self, row: SceneRow) -> int:
        before = self.outcomes.all.get(row.name)
        return 1 if before is None else before.attempt + 1

    def _end(self, outcome: Outcome) -> None:
        """Record and tell how a scene ended; one that another process holds has not."""
        self._has_left(outcome.name, 0)
        if outcome.code in _HELD_ELSEWHERE:
            self.passed_on += 1
            self.listener(Notice(text=f"{outcome.name} is left to another process: {outcome.what}"))
            return
        self.outcomes.add(outcome)
        self._tally.subtract(["left"])
        self._tally.update([outcome.status])
        self._failed_now += outcome.status == "failed"
        self.listener(SceneEnded(outcome=outcome, **self._counts()))

    def _has_left(self, name: str, pixels: int) -> None:
        """Note how much of a scene is still to compute."""
        self._pixels_left += pixels - self._left_px.get(name, 0)
        self._left_px[name] = pixels

    def _counts(self) -> dict[str, int]:
        tally = self._tally
        return {"done": tally["done"] + tally["empty"], "failed": tally["failed"], "left": tally["left"]}

    def _hear(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.listener(event)


def _bug(error: BaseException) -> PipelineError:
    return PipelineError(
        f"{type(error).__name__}: {error}",
        code="BUG-001",
        title="Unexpected error, most likely a mistake in scenemask",
        fix="segment this scene alone with --debug and report the traceback with the output of `scenemask doctor`",
    )
