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


def memory_limit(groups: Path = GROUPS, mine: Path = MINE) -> float | None:
    """Bytes that this process and others of its control group may take together; None where nobody says."""
    return least_limit("memory", _most_memory, groups, mine)


def _most_memory(group: Path) -> float | None:
    """`memory.max` in version 2, `memory.limit_in_bytes` in version 1."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return float((group / name).read_text())  # "max" is no number
    return None
