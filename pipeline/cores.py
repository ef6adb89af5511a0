"""How many cores this process may use. Containers are limited by a quota of time, which affinity does not show."""

from __future__ import annotations

import contextlib
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pipeline.control_groups import GROUPS, MINE, least_limit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def available_cores() -> int:
    """Cores of this process's affinity, no more than its control group's CPU quota or `at_most` says; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(cpu_quota(GROUPS, MINE)), _told.get()))


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
    quota = least_limit("cpu", _quota, groups, mine)
    return 1e6 if quota is None else quota


def _quota(group: Path) -> float | None:
    """Quota of one group: `cpu.max` in version 2, two files in version 1."""
    with contextlib.suppress(OSError, ValueError):
        allowed, period = (group / "cpu.max").read_text().split()
        return float(allowed) / float(period)  # "max" is no number
    with contextlib.suppress(OSError, ValueError):
        allowed, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if float(allowed) > 0:
            return float(allowed) / float(period)
    return None
