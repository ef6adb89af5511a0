"""What a run tells those who watch it. The library never prints; the command line listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.run.outcomes import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted:
    """A stage begins."""

    name: str
    """`infer`, `mask`, `polygons`, …"""
    total: int = 0
    """Steps that it will take; 0 when not known."""
    done: int = 0
    """Steps that an earlier run has done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageAdvanced:
    """A step is done."""

    name: str
    done: int
    total: int
    pixels: int = 0
    """Pixels of this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFinished:
    """A stage is done."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStarted:
    """The scenes of a batch have been looked at."""

    scenes: int
    to_do: int
    pixels: int
    """Of the scenes to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAdvanced:
    """A tile of a batch is done."""

    done: int
    """Scenes, empty ones included."""
    failed: int
    left: int
    pixels: int
    """Computed since the batch was started."""
    pixels_left: int
    """Still to compute: without those of recorded tiles, as soon as a scene's ledger was read, and of failed scenes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneEnded:
    """A scene of a batch has ended."""

    outcome: Outcome
    done: int
    failed: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something the user should read."""

    text: str


Event = StageStarted | StageAdvanced | StageFinished | BatchStarted | BatchAdvanced | SceneEnded | Notice
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """The listener that hears nothing."""
    del event
