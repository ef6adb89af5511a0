"""Named moments at which a test kills the process: beside every fsync, rename, append and stage of a run.

With `SCENEMASK_TEST_KILL_AT=after-rename:17` in the environment, a process sends itself SIGKILL the 17th time that it
reaches the point `after-rename`. Unset, a point is a call that returns.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

VARIABLE = "SCENEMASK_TEST_KILL_AT"

counts: Counter[str] = Counter()
"""Point -> how often it was reached; kept while armed."""
_lock = threading.Lock()
_wanted: tuple[str, int] | None = None


def arm(spec: str | None) -> None:
    """Choose the point: `name:count`, or None for none. Done by itself when the module is loaded."""
    global _wanted  # noqa: PLW0603 - one process, one point
    counts.clear()
    name, _, count = (spec or "").partition(":")
    _wanted = (name, int(count or 1)) if name else None


def reached(point: str) -> None:
    """Say that `point` has come; the process may end here."""
    if _wanted is None:
        return
    with _lock:
        counts[point] += 1
        if (point, counts[point]) == _wanted:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE))
