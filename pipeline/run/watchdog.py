"""Sees that nothing moves any more, writes down what it saw, and starts the workers anew that should have moved."""

from __future__ import annotations

import contextlib
import secrets
import statistics
import sys
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

from pipeline.errors import InfrastructureError
from pipeline.run.events import Notice
from pipeline.store import to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from pipeline.run.cluster import Connection
    from pipeline.run.events import Listener
    from pipeline.store import Place

_TIMES_MEDIAN = 10
_TIMES_AT_FIRST = 6
_MOST_RESTARTS = 3
"""In a row, without a task that ended in between."""
_RESTART_S = 60.0


class Watchdog:
    """Counts the time in which no task ends.

    Nothing may end for ten times the median of what tasks took, at least `stuck_after_s`; for six times that before the
    first one, while networks are compiled and workers are on their way.

    Args:
        connection: Whose workers are started anew; those in this process cannot be.
        stuck_after_s: Seconds.
        dump_to: Where `stuck-*.json` are written.
        tell: Hears of it.
    """

    def __init__(self, connection: Connection, *, stuck_after_s: float, dump_to: Place, tell: Listener) -> None:
        self._connection = connection
        self._least_s = stuck_after_s
        self._dump_to = dump_to
        self._tell = tell
        self._took: deque[float] = deque(maxlen=100)
        self._last = time.monotonic()
        self._dumps: list[str] = []
        self._name = secrets.token_hex(4)  # others may watch from the same folder
        self._restarts = 0

    def forget(self) -> None:
        """Remove what was written down: all has ended, so it explains nothing."""
        for name in self._dumps:
            self._dump_to.delete(name)

    def moved(self, seconds: float) -> None:
        """A task has ended, after so long."""
        self._took.append(seconds)
        self._last = time.monotonic()
        self._restarts = 0

    def look(self, running: Mapping[str, float], *, keys: AbstractSet[object]) -> None:
        """Act if it has been quiet for too long.

        Args:
            running: Name of each task on its way -> seconds since it was sent.
            keys: Dask's names of them.

        Raises:
            InfrastructureError: CL-004, starting workers anew has not helped.
        """
        if self._took:
            patience = max(_TIMES_MEDIAN * statistics.median(self._took), self._least_s)
        else:
            patience = _TIMES_AT_FIRST * self._least_s
        quiet = time.monotonic() - self._last
        if quiet < patience:
            return
        self._last = time.monotonic()
        seen = self._dump(running, quiet)
        if self._connection.in_process:
            self._tell(Notice(text=f"nothing has moved for {quiet:.0f} s; what runs was written to {seen}"))
            return
        if self._restarts == _MOST_RESTARTS:
            raise InfrastructureError(
                f"nothing has moved for {quiet:.0f} s, and starting workers anew {self._restarts} times has not helped",
                code="CL-004",
                title="Cluster stands still",
                where=str(seen),
                fix="look at the workers' logs and that file; the same command continues, finished tiles are kept",
            )
        self._restarts += 1
        self._tell(
            Notice(text=f"nothing has moved for {quiet:.0f} s; workers are started anew, what they did is in {seen}")
        )
        self._restart(keys)

    def _dump(self, running: Mapping[str, float], quiet: float) -> str:
        name = f"stuck-{self._name}-{len(self._dumps) + 1}.json"
        self._dumps.append(name)
        document: dict[str, Any] = {
            "quiet_s": round(quiet, 1),
            "running": {name: round(seconds, 1) for name, seconds in running.items()},
            "workers": self._workers(),
        }
        if self._connection.in_process:
            document["stacks"] = [traceback.format_stack(frame)[-4:] for frame in sys._current_frames().values()]  # noqa: SLF001 - the one way
        self._dump_to.write(name, to_bytes(document))
        return f"{self._dump_to}/{name}"

    def _workers(self) -> dict[str, Any]:
        """What the scheduler knows of each worker; asking them would wait for those that hang."""
        with contextlib.suppress(OSError, TimeoutError, RuntimeError):
            client = self._connection.client
            processing = client.processing()
            return {
                address: {
                    "tasks": len(processing.get(address, ())),
                    "last_seen_s_ago": round(time.time() - facts.get("last_seen", 0), 1),
                    "memory_bytes": facts.get("metrics", {}).get("memory"),
                }
                for address, facts in client.scheduler_info(n_workers=-1)["workers"].items()
            }
        return {}

    def _restart(self, keys: AbstractSet[object]) -> None:
        """Every worker that has something to do, or an answer to give; their nannies kill what does not listen."""
        client = self._connection.client
        with contextlib.suppress(OSError, TimeoutError, RuntimeError, ValueError):  # a worker without a nanny stays
            busy = {address for address, doing in client.processing().items() if doing}
            busy |= {address for address, held in client.has_what().items() if not keys.isdisjoint(held)}
            client.restart_workers(sorted(busy), timeout=_RESTART_S, raise_for_error=False)
        self._last = time.monotonic()
