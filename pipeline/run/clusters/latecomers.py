"""Workers that join a running cluster: the first task that reaches one asks it, and one that does not fit does nothing.

Those that are there before the first task are asked by `admission`. What a later one says is judged where it is said,
so no task waits for the client; the client hears of a misfit when it refuses a task, and gives it no more.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distributed import get_worker

from pipeline.errors import InfrastructureError, PipelineError, UsageError
from pipeline.run.clusters.admission import (
    Answer,
    Engine,
    answer,
    answer_here,
    cannot_answer,
    refuse_misfits,
    require_workers,
    unseen_place,
    versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from distributed import Client

    from pipeline.model import EngineSpec
    from pipeline.store import Place, TileStore


class MisfitError(Exception):
    """A worker that does not fit was given a task, and has done nothing.

    Args:
        address: Of the worker.
        failure: Why it does not fit.
    """

    def __init__(self, address: str, failure: PipelineError) -> None:
        super().__init__(address, failure)
        self.address, self.failure = address, failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a worker must have; travels with every task."""

    engine: Engine | None
    versions: dict[str, str]
    """Of the client."""
    allow_skew: bool
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    """By which processes remember how they were judged."""


def if_fit(needs: Needs, function: Callable[..., Any], *arguments: object) -> Any:
    """`function(*arguments)`, if the worker that this runs on fits.

    Raises:
        MisfitError: It does not.
    """
    failure = _judged(needs)
    if failure is not None:
        raise MisfitError(_address(), failure)
    return function(*arguments)


_guard = threading.Lock()
_known: dict[str, PipelineError | None] = {}
"""How this process was judged: key of the needs -> why it does not fit, None where it does."""


def _judged(needs: Needs) -> PipelineError | None:
    with _guard:
        if needs.key not in _known:
            _known[needs.key] = _why_misfit(needs)
        return _known[needs.key]


def _why_misfit(needs: Needs) -> PipelineError | None:
    try:
        told: object = answer_here(needs.engine, {})
    except Exception as error:  # noqa: BLE001 - a package that cannot even be imported, in whatever way
        told = error
    return _judgement(_address(), told, needs)


def _judgement(address: str, told: object, needs: Needs) -> PipelineError | None:
    """Why a worker does not fit that said this; None where it does."""
    if not isinstance(told, Answer):
        return cannot_answer(address, told)
    try:
        refuse_misfits({address: told}, engine=needs.engine, mine=needs.versions, allow_skew=needs.allow_skew)
    except UsageError as failure:
        return failure
    return None


def require_seen(store: TileStore, identity: str | None, *, folder: Path | None = None) -> None:
    """Refuse to work where this process does not see what the client does.

    Args:
        store: Where tiles go.
        identity: What the client knows it by; None where workers share this machine, so that there is nothing to ask.
        folder: What must be there too.

    Raises:
        MisfitError: CL-014.
        InfrastructureError: ST-010 to ST-013, the bucket does not tell.
    """
    if identity is None:
        return
    try:
        why = None if store.identity == identity else f"{store.place} (another one has that path there)"
    except InfrastructureError:
        raise
    except Exception as error:  # noqa: BLE001 - Zarr has many names for what is not there
        why = f"{store.place} ({type(error).__name__})"
    if why is None and folder is not None and not folder.is_dir():
        why = f"{folder} (it is not there)"
    if why is not None:
        raise MisfitError(_address(), unseen_place(_address(), answer_here(None, {}).host, why))


def _address() -> str:
    return str(get_worker().address)


class Door:
    """What the client knows of its workers: who fits, and who is given no tasks.

    Anybody is given tasks until something is wrong with one of those that joined; from then on those alone that were
    asked before. A worker without scenemask is not asked by a task, but dies of it.

    Args:
        client: Connected to them.
        allow_skew: Take packages that differ in the patch level only.
    """

    def __init__(self, client: Client, *, allow_skew: bool) -> None:
        self.needs = Needs(engine=None, versions=versions(), allow_skew=allow_skew)
        self.refused: dict[str, PipelineError] = {}
        self.wary = False
        """Whether those alone are given tasks that were asked before."""
        self._client = client
        self._asked: frozenset[str] = frozenset()
        self._asking: set[str] = set()
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    @property
    def known(self) -> frozenset[str]:
        """Workers that were asked, and fit."""
        return self._asked - self.refused.keys()

    def require(self, *, engine: EngineSpec | None = None, places: Sequence[Place] = ()) -> None:
        """Ask all workers that are there.

        Raises:
            UsageError: CL-012 to CL-015, as `require_workers`.
        """
        described = None if engine is None else (engine.backend, engine.device, engine.precision)
        allow_skew = self.needs.allow_skew
        self._asked = require_workers(self._client, engine=described, places=places, allow_skew=allow_skew)
        self.needs = Needs(engine=described, versions=versions(described), allow_skew=allow_skew)

    def refuse(self, misfit: MisfitError) -> list[str]:
        """Give a worker no more tasks; returns what to tell of it, if that is new."""
        self.wary = True
        if misfit.address in self.refused:
            return []
        self.refused[misfit.address] = misfit.failure
        return [f"left out, as it joined and does not fit ({misfit.failure.code}): {misfit.failure.what}"]

    def fitting(self) -> frozenset[str] | None:
        """Workers that may be given tasks; None for any."""
        return self._there() & self.known if self.wary else None

    def look(self) -> list[str]:
        """Ask those that came since, in a thread: one that stands still must not hold up the others.

        Returns:
            What to tell of those that were heard of meanwhile and do not fit.
        """
        texts: list[str] = []
        while not self._heard.empty():
            for address, told in self._heard.get().items():
                self._asking.discard(address)
                failure = _judgement(address, told, self.needs)
                texts += [] if failure is None else self.refuse(MisfitError(address, failure))
                self._asked |= {address}
        new = self._there() - self._asked - self._asking
        if new:
            self._asking |= new
            threading.Thread(target=self._ask, args=(sorted(new), self.needs.engine), daemon=True).start()
        return texts

    def refusal(self) -> PipelineError:
        """Why there is nobody left."""
        failure = next(iter(self.refused.values()))
        return type(failure)(
            f"no worker is left but such as do not fit: {failure.what}",
            code=failure.code,
            title=failure.title,
            where=failure.where,
            fix=f"{failure.fix}; the same command then continues, finished tiles are kept",
        )

    def _there(self) -> frozenset[str]:
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):  # the next task tells that the cluster is lost
            return frozenset(self._client.nthreads())
        return frozenset()

    def _ask(self, addresses: list[str], engine: Engine | None) -> None:
        with contextlib.suppress(Exception):  # they, or the scheduler, are gone: then they do not come up again
            self._heard.put(self._client.run(answer, engine, {}, workers=addresses, on_error="return"))
