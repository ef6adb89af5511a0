"""Progress of a batch on stderr: a line when a scene ends, and done, failed, left, speed and time to go."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from pipeline.cli.progress import choose_listener, say
from pipeline.run.events import BatchAdvanced, BatchStarted, Event, Listener, Notice, SceneEnded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import Progress

_LINE_EVERY_S = 10.0


@contextlib.contextmanager
def batch_listener(*, quiet: bool, verbose: int = 0) -> Iterator[Listener]:
    """A listener for the duration of a batch."""
    with choose_listener(quiet=quiet, bar=_bar, on_bar=_Bar, elsewhere=lambda: _Lines(verbose=verbose)) as listener:
        yield listener


class _Rate:
    """Pixels per second, and seconds to go."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def text(self, event: BatchAdvanced) -> str:
        speed = event.pixels / max(time.monotonic() - self._since, 1e-3)
        eta = event.pixels_left / speed if speed else 0.0
        return f"{speed / 1e6:.2f} Mpx/s  eta {_duration(eta)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _ending(event: SceneEnded) -> str:
    """One line about a scene."""
    one = event.outcome
    counts = f"{event.done} done, {event.failed} failed, {event.left} left"
    if one.status == "failed":
        return f"FAILED {one.name}: {one.code} {one.what.splitlines()[0]}  ({counts})"
    return f"{one.status} {one.name}  {one.pixels / 1e6:.3g} Mpx in {one.seconds:.1f} s  ({counts})"


class _Lines:
    """One line when a scene ends, and one every few seconds between them: no control characters."""

    def __init__(self, *, verbose: int) -> None:
        self._every_s = 0.0 if verbose else _LINE_EVERY_S
        self._rate: _Rate | None = None
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._say(f"note: {event.text}")
        elif isinstance(event, BatchStarted):
            self._rate = _Rate()
            self._say(f"{event.scenes} scenes, {event.to_do} to do ({event.pixels / 1e6:.3g} Mpx)")
        elif isinstance(event, SceneEnded):
            self._say(_ending(event))
        elif isinstance(event, BatchAdvanced) and self._rate and time.monotonic() - self._last >= self._every_s:
            counts = f"{event.done} done, {event.failed} failed, {event.left} left"
            self._say(f"  {counts}  {self._rate.text(event)}")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        say(text)


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=console,
    )


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("looking at the scenes", total=None, rate="")
        self._rate: _Rate | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._print(f"note: {event.text}")
        elif isinstance(event, BatchStarted):
            self._rate = _Rate()
            self._progress.update(self._task, total=event.pixels or 1, completed=0, description=f"{event.to_do} scenes")
        elif isinstance(event, SceneEnded):
            self._print(_ending(event))
        elif isinstance(event, BatchAdvanced) and self._rate:
            counts = f"{event.done} done, {event.failed} failed, {event.left} left"
            rate = self._rate.text(event)
            total = event.pixels + event.pixels_left
            self._progress.update(self._task, total=total, completed=event.pixels, description=counts, rate=rate)

    def _print(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
