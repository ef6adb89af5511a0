"""Limits of a process's control group and of those above it: containers and batch systems give less than a machine."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GROUPS = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")


def least_limit(controller: str, limit: Callable[[Path], float | None], groups: Path, mine: Path) -> float | None:
    """The least limit of a process's control group and of those above it; None where there is none.

    Args:
        controller: `cpu` or `memory`.
        limit: That of one group, given its folder; None if it has none.
        groups: Where control groups are mounted, in version 2 or version 1.
        mine: The process's groups, a line `id:controllers:path` each.
    """
    limits: list[float | None] = []
    with contextlib.suppress(OSError):
        for line in mine.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = groups / controllers if controllers else groups
            inside = PurePosixPath(path.lstrip("/"))  # in a container it may be a path of the host: only parents exist
            limits += [limit(root / group) for group in (inside, *inside.parents)]
    return min((one for one in limits if one is not None), default=None)


def memory_left(groups: Path = GROUPS, mine: Path = MINE) -> float | None:
    """Bytes that this process's control group may still take; None where nobody limits it."""
    return least_limit("memory", _memory_left, groups, mine)


def _memory_left(group: Path) -> float | None:
    """Of one group: its limit less what it holds, beside pages of files that it would give up first."""
    for limit, held in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            most = float((group / limit).read_text())  # "max" is no number
            return most - float((group / held).read_text()) + _given_up_first(group)
    return None


def _given_up_first(group: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return float(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
    return 0.0
