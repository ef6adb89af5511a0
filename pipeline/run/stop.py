"""Signals that end a run gently: they set a flag, which is looked at between tiles."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class StopFlag:
    """Set by a signal; looked at between tiles."""

    signum: int | None = None
    event: threading.Event = field(default_factory=threading.Event)

    def set(self, signum: int) -> None:
        """Ask the run to stop."""
        self.signum = signum
        self.event.set()

    def raise_if_set(self, hint: str) -> None:
        """End the run as the signal asked.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            Interrupted: RU-001 after SIGTERM or SIGUSR1.
        """
        if self.signum is None:
            return
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt(hint)
        name = signal.Signals(self.signum).name
        raise Interrupted(
            f"stopped by {name}; {hint}",
            code="RU-001",
            title="Interrupted, can be resumed",
            fix="run the same command again: finished tiles are kept",
        )


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGINT, SIGTERM and SIGUSR1 set a flag; a second SIGINT ends the process at once. Main thread only."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(signum: int, _frame: Any) -> None:
        if signum == signal.SIGINT and flag.signum == signal.SIGINT:
            os._exit(130)
        flag.set(signum)

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
