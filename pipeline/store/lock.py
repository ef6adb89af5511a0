"""One run per output folder: a lock that works where `flock` does not, and that the dead do not keep.

The lock is a folder, `lock/`, which appears whole (written under another name, then renamed), so it always tells its
owner. The owner counts up a file in it. Clocks are never compared between machines: whoever waits watches the counter
on a clock of its own.

Taking over renames `lock/` to `lock.taken-<nonce of its owner>`, a name that is never used twice: of two that see the
same dead owner only one succeeds, and the slower one cannot sweep away the faster one's new lock. These names go when a
run has come to its end (`sweep`). Whoever slept from before its judgement until after that, and then renames a third
run's lock, finds another owner in its hands and puts the lock back.

Release removes the folder with the lock if nothing else is in it; whoever was about to lock makes it again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from pipeline.errors import OutputError
from pipeline.processes import is_dead, machine, start_of
from pipeline.store.files import disk_full_as_error, fsync_path, private_folder, read_json
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEARTBEAT_S = 15.0
MAX_WAIT_S = 60.0
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds a lock."""

    host: str
    """Name of the machine, for people."""
    machine: str
    """Boot id and process namespace: only where these agree does a pid mean the same process."""
    pid: int
    pid_start: int | None
    """Kernel's start time of the process, in ticks since boot; tells a reused pid from the owner's."""
    nonce: str
    started: str
    """UTC, ISO 8601, for people."""
    heartbeat_s: float
    """Seconds between beats."""

    @classmethod
    def me(cls, heartbeat_s: float) -> Owner:
        """This process, under a fresh nonce."""
        return cls(
            host=socket.gethostname(),
            machine=machine(),
            pid=os.getpid(),
            pid_start=start_of(os.getpid()),
            nonce=secrets.token_hex(8),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            heartbeat_s=heartbeat_s,
        )

    @classmethod
    def unknown(cls, name: str) -> Owner:
        """Somebody whose lock cannot be read, told apart from others by `name`."""
        return cls(
            host="an unknown host",
            machine="",
            pid=0,
            pid_start=None,
            nonce=f"unknown-{name}",
            started="an unknown time",
            heartbeat_s=HEARTBEAT_S,
        )

    def is_dead(self) -> bool | None:
        """True or False when the owner ran on this machine; None when only its heartbeat can tell."""
        return None if self.machine != machine() else is_dead(self.pid, self.pid_start)


class RunLock:
    """Holds the lock of `folder` inside a `with` block.

    Args:
        folder: The run's private folder; made (0700) if absent.
        heartbeat_s: Seconds between beats, at most 30: others wait two of them before they take over.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder = folder
        self._path = folder / "lock"
        self._clock = clock
        self._sleep = sleep
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread: threading.Thread | None = None
        self._owner = Owner.me(min(heartbeat_s, MAX_WAIT_S / 2))

    @property
    def lost(self) -> bool:
        """True once another run has taken the lock over, as after a long sleep of this machine."""
        return self._lost.is_set()

    def acquire(self) -> None:
        """Take the lock, waiting at most two heartbeats of an owner on another machine.

        Raises:
            OutputError: OU-002, another run holds it.
            ResourceError: RS-001, no space.
            UsageError: CF-002, the folder cannot be made.
        """
        while not self._try_to_take():
            holder = _read_owner(self._path)
            if holder is None:
                continue  # released between the two looks
            if holder.is_dead() is not True and self._beats(holder):
                raise self._held_by(holder)
            self._evict(holder)
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="scenemask-lock", daemon=True)
        self._thread.start()

    def holder(self) -> tuple[Owner, bool] | None:
        """Who holds the lock, and whether it shows life: the look of somebody who does not want it."""
        owner = _read_owner(self._path)
        if owner is None:
            return None
        return owner, owner.is_dead() is not True and self._beats(owner)

    def ensure_held(self) -> None:
        """Call before anything that cannot be undone, such as renaming results into place.

        Raises:
            OutputError: OU-003, the lock was taken over.
        """
        if self._is_mine():
            return
        self._lost.set()
        raise OutputError(
            "another run has taken over this output while this one stood still longer than its heartbeat allows",
            code="OU-003",
            title="Lock was lost",
            where=str(self._path),
            fix="let the other run finish; nothing of it was overwritten",
        )

    def release(self) -> None:
        """Give the lock back, if it is still ours. Releasing twice is fine."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._is_mine():
            gone = self._folder / f"lock.gone-{self._owner.nonce}"
            with contextlib.suppress(OSError):
                reached("before-rename")
                self._path.rename(gone)
                reached("after-rename")
                shutil.rmtree(gone)
                self._folder.rmdir()  # refused unless it is empty

    def sweep(self) -> None:
        """Delete the locks of the dead, for the run is done and the folder may go. Call while holding the lock."""
        self.ensure_held()
        for left in self._folder.glob("lock.new-*"):  # renamed first: a living one that has just begun tries again
            with contextlib.suppress(OSError):
                left.rename(self._folder / f"lock.gone-{left.name.removeprefix('lock.new-')}")
        for pattern in ("lock.taken-*", "lock.gone-*"):
            for left in self._folder.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _try_to_take(self) -> bool:
        self._owner = Owner.me(self._owner.heartbeat_s)
        fresh = private_folder(self._folder) / f"lock.new-{self._owner.nonce}"
        try:
            with disk_full_as_error(self._folder):
                fresh.mkdir(mode=0o700)
                (fresh / "owner.json").write_text(json.dumps(asdict(self._owner)), "utf-8")
                (fresh / "beat").write_bytes(_beat_text(0))
                reached("before-rename")
                fresh.rename(self._path)  # fails on a folder that is not empty: someone's lock
                reached("after-rename")
                fsync_path(self._folder)
        except OSError as error:
            # Taken; or the folder went, with an owner that released its lock, before there was anything of ours in it.
            if error.errno not in _TAKEN and not (error.errno == errno.ENOENT and not fresh.exists()):
                raise
            return False
        else:
            return True
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _beats(self, holder: Owner) -> bool:
        """Whether the holder shows life; known at once on this machine, else within two of its heartbeats."""
        if holder.is_dead() is False:
            return True
        patience = min(2 * holder.heartbeat_s, MAX_WAIT_S)
        before = self._state()
        deadline = self._clock() + patience
        while self._clock() < deadline:
            self._sleep(min(1.0, patience / 10))
            if self._state() != before:
                return _read_owner(self._path) is not None
        return False

    def _state(self) -> tuple[str, str]:
        owner = _read_owner(self._path)
        try:
            beat = (self._path / "beat").read_text("ascii")
        except (OSError, ValueError):
            beat = ""
        return "" if owner is None else owner.nonce, beat

    def _evict(self, holder: Owner) -> None:
        # Of those who judged this owner dead, the first rename wins; for the rest the target is taken, or the source
        # gone. All of them then try again.
        taken = self._folder / f"lock.taken-{holder.nonce}"
        try:
            reached("before-rename")
            self._path.rename(taken)
            reached("after-rename")
        except OSError as error:
            if error.errno not in {*_TAKEN, errno.ENOENT}:
                raise
            return
        found = _read_owner(taken)
        if found is not None and found.nonce.isalnum() and found.nonce != holder.nonce:  # not the one we judged
            with contextlib.suppress(OSError):  # somebody has locked since: its owner will notice the loss
                taken.rename(self._path)

    def _is_mine(self) -> bool:
        holder = _read_owner(self._path)
        return holder is not None and holder.nonce == self._owner.nonce

    def _beat_until_stopped(self) -> None:
        beat = 0
        while not self._stop.wait(self._owner.heartbeat_s):
            beat += 1
            if not self._is_mine():
                self._lost.set()
                return
            # In place and of fixed width: a full disk must not stop the heart.
            with contextlib.suppress(OSError), (self._path / "beat").open("r+b", buffering=0) as file:
                file.write(_beat_text(beat))

    def _held_by(self, holder: Owner) -> OutputError:
        return OutputError(
            f"another run writes here: process {holder.pid} on {holder.host}, since {holder.started}",
            code="OU-002",
            title="Output is locked by another run",
            where=str(self._path),
            fix=f"wait for it, choose another folder with -o, or end it (kill {holder.pid} on {holder.host})",
        )


def _beat_text(beat: int) -> bytes:
    return b"%016d" % beat


def _read_owner(lock: Path) -> Owner | None:
    """The owner of a lock; None if there is no lock. An owner that cannot be read is a stranger, judged by its beat."""
    value = read_json(lock / "owner.json")
    try:
        owner = Owner(**value)  # type: ignore[arg-type]
        if owner.nonce.isalnum() and 0 < owner.heartbeat_s <= MAX_WAIT_S / 2 and owner.pid > 0:
            return owner
    except (TypeError, AttributeError):
        pass
    try:
        stat = lock.stat()
    except OSError:
        return None
    return Owner.unknown(f"{stat.st_ino}-{stat.st_ctime_ns}")
