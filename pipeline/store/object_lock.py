"""One run per prefix of a bucket: a lock that two machines can see which share nothing but the bucket.

As on disk (see `lock.py`): the owner counts up, and whoever waits watches that on a clock of its own. Here the lock is
one object, made and changed only under a condition that the store checks: that there is none, or that it is still the
one that was read. So of two that take over a dead owner's lock only one succeeds. An answer may be lost after its
condition held; a condition that fails is therefore followed by a look at whose the lock is.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Self

from pipeline.bucket import ConflictError, NoObjectError
from pipeline.errors import InfrastructureError, OutputError
from pipeline.store.lock import HEARTBEAT_S, MAX_WAIT_S, Owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.bucket import Bucket

_LOOKS = 10
"""At a lock whose owner may be dead, in the time that it is given."""


class BucketLock:
    """Holds the lock under `key` inside a `with` block. The store must know conditional writes.

    Args:
        bucket: Where.
        key: Of the lock.
        heartbeat_s: Seconds between beats, at most 30: others wait two of them before they take over.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
    """

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._clock = clock
        self._sleep = sleep
        self._owner = Owner.me(min(heartbeat_s, MAX_WAIT_S / 2))
        self._etag = ""
        self._beat = 0
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, waiting at most two heartbeats of an owner that may be dead.

        Raises:
            OutputError: OU-002, another run holds it.
            InfrastructureError: ST-010 to ST-013.
        """
        while not self._put(None):
            held = self._read()
            if held is None:
                continue  # released between the two looks
            holder, etag = held
            if holder.is_dead() is not True and self._beats(holder, etag):
                raise self._held_by(holder)
            if self._put(etag):
                break
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="scenemask-bucket-lock", daemon=True)
        self._thread.start()

    def ensure_held(self) -> None:
        """See `Claim`."""
        self.claim().ensure_held()

    def claim(self) -> Claim:
        """For processes that work for the holder."""
        return Claim(self._bucket, self._key, self._owner.nonce)

    def holder(self) -> tuple[Owner, bool] | None:
        """Who holds the lock, and whether it shows life: the look of somebody who does not want it."""
        held = _read(self._bucket, self._key)
        return None if held is None else (held[0], held[0].is_dead() is not True and self._beats(*held))

    def release(self) -> None:
        """Give the lock back, if it is still ours; a store that cannot be reached keeps it until it counts as dead."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(InfrastructureError):
            if self._is_mine():
                self._bucket.delete(self._key)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _put(self, replacing: str | None) -> bool:
        """Write our name where there is no lock, or over the version `replacing`; False where that is another's."""
        with self._guard:
            self._beat += 1
            body = json.dumps({**asdict(self._owner), "beat": self._beat}).encode()
            try:
                self._etag = self._bucket.put(self._key, body, only_new=replacing is None, replacing=replacing)
            except ConflictError:
                held = self._read()
                if held is None or held[0].nonce != self._owner.nonce:
                    return False
                self._etag = held[1]  # an attempt whose answer was lost
            return True

    def _beats(self, holder: Owner, etag: str) -> bool:
        """Whether the holder shows life within two of its heartbeats; known at once on this machine."""
        if holder.is_dead() is False:
            return True
        patience = min(2 * holder.heartbeat_s, MAX_WAIT_S)
        deadline = self._clock() + patience
        while self._clock() < deadline:
            self._sleep(patience / _LOOKS)
            held = self._read()
            if held is None:
                return False  # released: taking over fails, and the next attempt makes a new one
            if held[1] != etag:
                return True
        return False

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(self._owner.heartbeat_s):
            with contextlib.suppress(InfrastructureError):  # a passing trouble: `ensure_held` asks who has the lock
                if not self._put(self._etag):
                    return

    def _is_mine(self) -> bool:
        return self.claim().holds()

    def _read(self) -> tuple[Owner, str] | None:
        return _read(self._bucket, self._key)

    def _held_by(self, holder: Owner) -> OutputError:
        return OutputError(
            f"another run writes here: process {holder.pid} on {holder.host}, since {holder.started}",
            code="OU-002",
            title="Output is locked by another run",
            where=self._bucket.where(self._key),
            fix=f"wait for it, choose another prefix with -o, or end it (kill {holder.pid} on {holder.host})",
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """To a lock that a run holds, as a value: its workers ask with it whether the run still has it."""

    bucket: Bucket
    key: str
    nonce: str
    """The holder's."""

    def holds(self) -> bool:
        """Whether it does.

        Raises:
            InfrastructureError: ST-010 to ST-013, the store does not tell.
        """
        held = _read(self.bucket, self.key)
        return held is not None and held[0].nonce == self.nonce

    def ensure_held(self) -> None:
        """Call before anything that cannot be undone, such as removing the results that are there.

        Raises:
            OutputError: OU-003, the lock was taken over.
            InfrastructureError: ST-010 to ST-013, the store does not tell.
        """
        if self.holds():
            return
        raise OutputError(
            "another run has taken over this output while this one stood still longer than its heartbeat allows",
            code="OU-003",
            title="Lock was lost",
            where=self.bucket.where(self.key),
            fix="let the other run finish; nothing of it was overwritten",
        )


def _read(bucket: Bucket, key: str) -> tuple[Owner, str] | None:
    """Owner and version of the lock; an owner that cannot be read is a stranger, judged by its beat."""
    try:
        body, etag = bucket.get(key)
    except NoObjectError:
        return None
    try:
        fields = json.loads(body)
        del fields["beat"]
        owner = Owner(**fields)
        if 0 < owner.heartbeat_s <= MAX_WAIT_S / 2 and owner.pid > 0:
            return owner, etag
    except (ValueError, TypeError, KeyError):
        pass
    return Owner.unknown(etag), etag
