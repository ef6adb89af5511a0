"""What training tells those who watch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A step has been taken."""

    step: int
    """From 1."""
    steps: int
    """At most."""
    loss: float
    done_frac: float
    """Of steps or time, whichever is further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The validation part has been looked at."""

    step: int
    loss: float
    """Mean since the last look, on training chips."""
    mean_iou: float | None
    """Of the validation part; None where there is none."""
    best: bool
    """Better than all before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something a person should read."""

    text: str


TrainEvent = StepDone | Checked | Note
TrainListener = Callable[[TrainEvent], None]


def silent(event: TrainEvent) -> None:
    """The listener that hears nothing."""
    del event
