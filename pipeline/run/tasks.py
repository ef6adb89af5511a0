"""Tasks on a Dask client: a bounded window in flight, whatever kills workers kept apart, signals that end it gently."""

from __future__ import annotations

import contextlib
import queue
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask.utils import key_split
from distributed.scheduler import KilledWorker

from pipeline.errors import PipelineError
from pipeline.run.apart import run_apart
from pipeline.run.clusters.latecomers import MisfitError, if_fit
from pipeline.run.events import Notice
from pipeline.run.failures import as_failure, is_cluster_lost
from pipeline.run.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from distributed import Future

    from pipeline.run.cluster import Connection
    from pipeline.run.events import Listener
    from pipeline.run.stop import StopFlag
    from pipeline.store import Place

_GRACE_S = 10.0
"""Time given to a worker to say what became of a task."""
_AGAIN = ("lost", "pending")
"""A worker that dies takes the answers with it that nobody fetched; Dask computes them again on another."""
_ANEW = ("finished", "pending")
"""It had failed, and was tried again with another one that failed of the same."""


_ROUND_S = 1.0
_MOST_ROUNDS = 20
"""Workers may be killed often before one lives long enough to unpack a model, and each start takes seconds."""
_KEYS_KEPT = 1000
"""Dask, and a scheduler in this process, keep the last hundred thousand keys, of work long done."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """Work for a worker, and who is told of its end. Those who are told run on the client's thread, one at a time."""

    name: str
    """For people: `tile 3 of s2a`."""
    function: Callable[..., Any]
    """Doing it twice must do no harm."""
    arguments: tuple[object, ...]
    """Futures among them arrive as what they hold."""
    on_done: Callable[[Any], None]
    on_failed: Callable[[BaseException], None]
    first: bool = False
    """Before the tasks that wait already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who looks after tasks while they run."""

    stop: StopFlag
    """Looked at between tasks; those that have not ended are then abandoned."""
    tell: Listener
    """Hears what the watchdog does."""
    stuck_after_s: float
    """Silence after which workers are started anew; see `Watchdog`."""
    dump_to: Place
    """For what the watchdog saw; what it wrote goes once all tasks have ended."""


def run_tasks(connection: Connection, source: Callable[[], Task | None], *, watch: Watch) -> None:
    """Run what `source` gives, until it gives no more and all of it has ended, or a signal comes.

    A task whose workers died is run once more in a process of its own; whatever else fails is for `on_failed`.

    Args:
        connection: Client, and how many tasks keep it busy.
        source: Gives the next task whenever there is room; None where there is none for now, which is the end once
            none is running either.
        watch: Who looks after them.

    Raises:
        InfrastructureError: CL-003, the scheduler is gone; CL-004, nothing moves although workers were started anew.
        UsageError: CL-012 to CL-015, there are no workers left but such as joined later and do not fit.
    """
    crew = _Crew(connection, tell=watch.tell)
    dog = Watchdog(connection, stuck_after_s=watch.stuck_after_s, dump_to=watch.dump_to, tell=watch.tell)
    crew.fill(source)
    while crew.busy and not watch.stop.event.is_set():
        ended = crew.wait(_LOOK_EVERY_S)
        crew.rescue(patience_s=watch.stuck_after_s)
        if ended is None:
            now = time.monotonic()
            running = {one.task.name: now - one.since for one in crew.running.values()}
            dog.look(running, keys={future.key for future in crew.running})
            continue
        if not crew.is_for_others(ended):
            dog.moved(time.monotonic() - ended.since)
            _settle(crew, ended)
        crew.fill(source)
    if not crew.busy:
        dog.forget()
    crew.abandon()


def _settle(crew: _Crew, ended: _Ended) -> None:
    """Tell what became of a task, or try it once more by itself."""
    if isinstance(ended.outcome, _Done):
        ended.task.on_done(ended.outcome.value)
    elif isinstance(ended.outcome, KilledWorker) and not ended.apart:
        crew.submit(ended.task, apart=True)
    elif ended.lost:
        raise as_failure(ended.outcome, where=ended.task.name)
    else:
        ended.task.on_failed(ended.outcome)


_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class _Done:
    value: Any


@dataclass(frozen=True, slots=True)
class _Running:
    task: Task
    apart: bool
    since: float
    only: str | None = None
    """The worker that it was sent to; None where the scheduler chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended(_Running):
    outcome: _Done | BaseException
    lost: bool
    """Whether the scheduler is gone; what a task itself raised says nothing of that."""


class _Crew:
    """What has been sent and has not ended."""

    def __init__(self, connection: Connection, *, tell: Listener) -> None:
        self.running: dict[Future, _Running] = {}
        self._connection = connection
        self._tell = tell
        self._finished: queue.Queue[Future] = queue.Queue()
        self._held: list[tuple[Task, bool]] = []
        """For workers that fit, while there are none."""
        self._alone_since: float | None = None
        self._rounds = 0
        """In which something shared was made again, without a task that ended well in between."""
        self._round_at = 0.0
        self._looked_at = 0.0
        self._sent = 0

    @property
    def busy(self) -> bool:
        """Whether anything has not ended."""
        return bool(self.running or self._held)

    def fill(self, source: Callable[[], Task | None]) -> None:
        """Send as much as keeps all workers busy."""
        while len(self.running) < 2 * self._connection.slots and not self._held:
            task = source()
            if task is None:
                return
            self.submit(task)

    def submit(self, task: Task, *, apart: bool = False) -> None:
        """Send one task; `apart` in a process of its own."""
        call: tuple[Any, ...] = (run_apart, task.function) if apart else (task.function,)
        door, only = self._connection.door, None
        if door is not None:
            call = (if_fit, door.needs, *call)
            fitting = door.fitting()
            if fitting is not None and not fitting:
                self._held.append((task, apart))
                return
            only = None if fitting is None else self._least_busy(fitting)
        one = _Running(task, apart, time.monotonic(), only)
        more = {} if only is None else {"workers": [only]}
        priority = 10 if task.first or apart else 0
        self._sent += 1
        if self._sent % _KEYS_KEPT == 0:
            key_split.cache_clear()
        self._follow(self._connection.client.submit(*call, *task.arguments, pure=False, priority=priority, **more), one)

    def wait(self, timeout_s: float) -> _Ended | None:
        """The next one that ends; None where none does in time."""
        try:
            future = self._finished.get(timeout=timeout_s)
        except queue.Empty:
            return None
        one = self.running.pop(future, None)
        if one is None:
            return None  # it was taken back
        outcome = None if future.status in _AGAIN else _outcome(future)
        if isinstance(outcome, _Done):
            self._rounds = 0
        if outcome is None or self._is_tried_again(future, outcome):
            self._follow(future, one)
            return None
        lost = not isinstance(outcome, _Done) and future.status != "error" and is_cluster_lost(outcome)
        return _Ended(one.task, one.apart, one.since, one.only, outcome=outcome, lost=lost)

    def _is_tried_again(self, future: Future, outcome: object) -> bool:
        """Whether workers died while they made what this task shares with others, so that nothing of it was tried.

        Dask would hold that against all tasks that need it, for ever.
        """
        if not isinstance(outcome, KilledWorker) or outcome.task == future.key:
            return False
        now = time.monotonic()
        if now - self._round_at > _ROUND_S:  # all tasks that need it end at once
            self._round_at = now
            self._rounds += 1
        if self._rounds > _MOST_ROUNDS:
            return False
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):  # what has no scheduler is told as lost
            client = self._connection.client
            # `Client.retry` also marks futures as pending when it hears back, by when quick ones may have ended.
            client.sync(client.scheduler.retry, keys=[future.key], client=client.id)
        return True

    def is_for_others(self, ended: _Ended) -> bool:
        """Whether a task may have failed for its worker's sake; it is then sent to one that was asked."""
        door, outcome = self._connection.door, ended.outcome
        if door is None or isinstance(outcome, _Done) or ended.lost:
            return False
        if isinstance(outcome, MisfitError):
            self._say(door.refuse(outcome))
        elif isinstance(outcome, PipelineError) or ended.only is not None:
            return False
        else:
            door.wary = True
            if isinstance(outcome, KilledWorker):
                return False
        self.submit(ended.task, apart=ended.apart)
        return True

    def _say(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._tell(Notice(text=text))

    def rescue(self, *, patience_s: float) -> None:
        """Send again what waits for workers that are gone.

        Args:
            patience_s: How long there may be none that fits.

        Raises:
            UsageError: CL-012 to CL-015, there was none for longer.
        """
        door = self._connection.door
        now = time.monotonic()
        if door is None or not door.wary or now - self._looked_at < _ROUND_S:
            return
        self._looked_at = now
        self._say(door.look())
        fitting = door.fitting()
        if not fitting:
            self._alone_since = self._alone_since or now
            if door.refused and now - self._alone_since > patience_s:
                raise door.refusal()
            return
        self._alone_since = None
        stranded = {f: one for f, one in self.running.items() if one.only is not None and one.only not in fitting}
        again, self._held = self._held + [(one.task, one.apart) for one in stranded.values()], []
        for future in stranded:
            del self.running[future]
            future.cancel()
        for task, apart in again:
            self.submit(task, apart=apart)

    def _least_busy(self, addresses: frozenset[str]) -> str:
        """Dask would send a task that may not run everywhere to workers that hold what it needs, and to no others."""
        tasks = Counter(one.only for one in self.running.values())
        return min(sorted(addresses), key=lambda address: tasks[address])

    def abandon(self) -> None:
        """Drop what has not started and give what runs a moment to be recorded."""
        if self.running:
            for future in self.running:
                with contextlib.suppress(OSError, TimeoutError, RuntimeError):
                    future.cancel()
            time.sleep(0.5)

    def _follow(self, future: Future, one: _Running) -> None:
        self.running[future] = one
        future.add_done_callback(self._finished.put)


def _outcome(future: Future) -> _Done | BaseException | None:
    """What became of a task whose future has ended; None where its worker does not tell, which may be over."""
    try:
        if future.status == "finished":
            return _Done(future.result(timeout=_GRACE_S))
    except TimeoutError:
        return None
    except BaseException as caught:  # noqa: BLE001 - a cancelled or lost future raises instead of returning
        return caught
    try:
        error: BaseException | None = future.exception(timeout=_GRACE_S)
    except BaseException as caught:  # noqa: BLE001 - a cancelled or lost future raises instead of returning
        error = caught
    if future.status in _ANEW and (error is None or isinstance(error, TimeoutError)):
        return None
    # Of a scheduler that died there is neither an answer nor an error.
    return error or ConnectionError(f"a task is {future.status}")
