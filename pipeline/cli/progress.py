"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.run.events import Event, Listener, Notice, StageAdvanced, StageFinished, StageStarted, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress, TaskID

_LINE_EVERY_S = 10.0
_LABELS = {
    "scene": "making the scene",
    "train": "training",
    "plan": "planning",
    "infer": "segmenting",
    "verify": "verifying",
    "mask": "writing the mask",
    "polygons": "tracing polygons",
    "files": "writing the rest",
    "score": "scoring",
}


_WARMING = {"plan": "looking at the network", "infer": "warming up"}
"""Shown until the first step is done: a new network is probed and timed, the first forward compiles, and a bar that
stands still looks like a hang."""


@contextlib.contextmanager
def run_listener(*, quiet: bool, verbose: int = 0) -> Iterator[Listener]:
    """A listener for the duration of a command."""
    with choose_listener(quiet=quiet, bar=_bar, on_bar=_Bar, elsewhere=lambda: _Lines(verbose=verbose)) as listener:
        yield listener


@contextlib.contextmanager
def choose_listener(
    *,
    quiet: bool,
    bar: Callable[[Console], Progress],
    on_bar: Callable[[Progress], Listener],
    elsewhere: Callable[[], Listener],
) -> Iterator[Listener]:
    """Nothing when quiet, a bar on a terminal, something without control characters elsewhere."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        from rich.console import Console

        with bar(Console(stderr=True)) as progress:
            yield on_bar(progress)
    else:
        yield elsewhere()


def _bar(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:>18}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:<24}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
    )


class _Rate:
    """Steps and pixels per second since a stage began."""

    def __init__(self, started: StageStarted) -> None:
        self.stage = started
        self.since = time.monotonic()
        self.pixels = 0

    def text(self, event: StageAdvanced) -> str:
        self.pixels += event.pixels
        elapsed = max(time.monotonic() - self.since, 1e-3)
        steps = (event.done - self.stage.done) / elapsed
        if not self.pixels:
            return f"{steps:.1f}/s"
        return f"{steps:.2f} tiles/s {self.pixels / elapsed / 1e6:.2f} Mpx/s"

    def eta_s(self, event: StageAdvanced) -> float:
        elapsed = time.monotonic() - self.since
        done = max(event.done - self.stage.done, 1)
        return elapsed / done * (event.total - event.done)


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._rates: dict[str, _Rate] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._progress.console.print(f"note: {event.text}", highlight=False, markup=False)
        elif isinstance(event, StageStarted):
            self._rates[event.name] = _Rate(event)
            label = _LABELS.get(event.name, event.name)
            self._tasks[event.name] = self._progress.add_task(
                label, total=event.total or None, completed=event.done, rate=_WARMING.get(event.name, "")
            )
        elif isinstance(event, StageAdvanced):
            rate = self._rates[event.name].text(event)
            self._progress.update(self._tasks[event.name], completed=event.done, total=event.total, rate=rate)
        elif isinstance(event, StageFinished) and event.name in self._tasks:
            task = self._tasks[event.name]
            shown = self._progress.tasks[task]
            total, rate = shown.total or 1, shown.fields["rate"]
            rate = "" if rate == _WARMING.get(event.name) else rate
            self._progress.update(task, total=total, completed=total, rate=rate)


class _Lines:
    """One line when a stage begins and ends, and one every few seconds: no control characters."""

    def __init__(self, *, verbose: int) -> None:
        self._every_s = 0.0 if verbose else _LINE_EVERY_S
        self._rates: dict[str, _Rate] = {}
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self._say(f"note: {event.text}")
        elif isinstance(event, StageStarted):
            self._rates[event.name] = _Rate(event)
            done = f", {event.done} done before" if event.done else ""
            total = f" ({event.total} steps{done})" if event.total else ""
            warming = f", {_WARMING[event.name]}" if event.name in _WARMING else ""
            self._say(f"{_LABELS.get(event.name, event.name)}{total}{warming}")
        elif isinstance(event, StageAdvanced):
            rate = self._rates[event.name]
            text = rate.text(event)
            if time.monotonic() - self._last >= self._every_s and event.done < event.total:
                self._say(f"  {event.done}/{event.total}  {text}  eta {rate.eta_s(event):.0f} s")
        elif isinstance(event, StageFinished):
            self._say(f"  done in {event.seconds:.1f} s")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        say(text)


def say(text: str) -> None:
    """A line on stderr, if there is somebody to read it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # a closed pipe, a full disk under the log: no reason to end a run
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process; nothing is left to flush
