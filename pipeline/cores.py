"""How many cores this process may use. Containers are limited by a quota of time, which affinity does not show."""

from __future__ import annotations

import contextlib
import os
import sys
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores of this process's affinity, no more than its control group's CPU quota or `at_most` says; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(cpu_quota(_GROUPS, _MINE)), _told.get()))


@contextlib.contextmanager
def at_most(cores: int | None) -> Iterator[None]:
    """Believe, in this thread, whoever gave this process fewer cores than its host shows."""
    token = _told.set(cores or sys.maxsize)
    try:
        yield
    finally:
        _told.reset(token)


_told: ContextVar[int] = ContextVar("cores", default=sys.maxsize)


def cpu_quota(groups: Path, mine: Path) -> float:
    """The least quota of a process's control group and those above it, in cores; more than any machine has if none.

    Args:
        groups: Where control groups are mounted, in version 2 or version 1.
        mine: The process's groups, a line `id:controllers:path` each.
    """
    quotas = [1e6]
    with contextlib.suppress(OSError):
        for line in mine.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = groups / controllers if controllers else groups
            inside = PurePosixPath(path.lstrip("/"))  # in a container it may be a path of the host: only parents exist
            quotas += [_quota(root / group) for group in (inside, *inside.parents)]
    return min(quotas)


def _quota(group: Path) -> float:
    """Quota of one group: `cpu.max` in version 2, two files in version 1."""
    with contextlib.suppress(OSError, ValueError):
        allowed, period = (group / "cpu.max").read_text().split()
        return float(allowed) / float(period)  # "max" is no number
    with contextlib.suppress(OSError, ValueError):
        allowed, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if float(allowed) > 0:
            return float(allowed) / float(period)
    return 1e6
