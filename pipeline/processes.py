"""Which process something belongs to, and whether that has ended: what the dead leave behind is swept by the living."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = re.compile(r"([0-9a-f]{8})-([0-9]+)-([0-9]+)-[0-9a-f]{8}")


def machine() -> str:
    """What a pid is relative to: this boot of this kernel, and the process namespace (containers share host names)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def start_of(pid: int) -> int | None:
    """Start time of a process in ticks since boot; 0 for one that has ended but was not yet reaped; None if unseen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return 0 if state in {"Z", "X"} else int(rest[18])


def is_dead(pid: int, start: int | None) -> bool | None:
    """Whether a process of this machine has ended; None when nothing tells.

    Args:
        pid: Its number, which another process may have by now.
        start: What `start_of` said of it.
    """
    now = start_of(pid)
    if now is not None:
        return now != start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return None  # it exists, but /proc does not show it to us


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder as `make_temporary_folder` makes it, for the duration of a block."""
    folder = make_temporary_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_temporary_folder(parent: Path, prefix: str) -> Path:
    """A private folder that tells whose it is. Those with the same prefix are removed if their process is dead.

    Of a process on another machine nothing is known, and its folders stay.

    Raises:
        OSError: It cannot be made.
    """
    for path in parent.glob(f"{_literally(prefix)}*"):
        if _of_the_dead(path, prefix):
            shutil.rmtree(path, ignore_errors=True)
    path = parent / f"{prefix}{_here()}-{os.getpid()}-{start_of(os.getpid()) or 0}-{secrets.token_hex(4)}"
    path.mkdir(mode=0o700)
    return path


def _here() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def _of_the_dead(path: Path, prefix: str) -> bool:
    mark = _MARK.fullmatch(path.name.removeprefix(prefix))
    if mark is None or mark[1] != _here() or not is_dead(int(mark[2]), int(mark[3])):
        return False
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.geteuid() and not path.is_symlink()
    return False


def _literally(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)
