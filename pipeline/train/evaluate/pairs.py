"""Windows of PRED and TRUTH side by side: what is left out is decided here, once for all measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.grid import Window, iter_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.train.evaluate.rasters import Indices, Source

WINDOW_PX = 2048
"""Side of what is read at a time; no result depends on it."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One window of both, with a halo. Where either has no class, both arrays hold `none`: not compared."""

    window: Window
    """What is counted."""
    outer: Window
    """What the arrays cover: the window and its halo, clipped to the scene."""
    pred: Indices
    truth: Indices
    none: int
    left_out: tuple[int, int, int]
    """Pixels of the window without a class in PRED alone, in TRUTH alone, in both."""

    @property
    def core(self) -> tuple[slice, slice]:
        """The window inside the arrays."""
        return self.window.slices_in(self.outer)

    @property
    def compared(self) -> NDArray[np.bool_]:
        """`(y, x)` of the window."""
        return np.asarray(self.pred[self.core] != self.none)


class Counter(Protocol):
    """A measure that is summed over windows, given row by row from the upper left."""

    halo_px: int
    """Pixels around a window that it looks at."""

    def add(self, pair: Pair) -> None:
        """Count one window."""
        ...


def count(
    pred: Source,
    truth: Source,
    shape: tuple[int, int],
    counters: Sequence[Counter],
    *,
    none: int,
    window_px: int = WINDOW_PX,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Show all windows to all counters.

    Args:
        pred: Indices of PRED.
        truth: Indices of TRUTH.
        shape: (height, width) of PRED.
        counters: What is measured.
        none: Index that means no class.
        window_px: Side of a window.
        progress: Called with (windows done, windows in all).
    """
    whole = Window.from_bounds(0, 0, *shape)
    halo = max((counter.halo_px for counter in counters), default=0)
    windows = list(iter_windows(shape, (window_px, window_px)))
    for done, window in enumerate(windows, start=1):
        outer = window.expand(halo).intersect(whole)
        pair = _pair(pred.read(outer), truth.read(outer), window, outer, none)
        for counter in counters:
            counter.add(pair)
        if progress is not None:
            progress(done, len(windows))


def _pair(pred: Indices, truth: Indices, window: Window, outer: Window, none: int) -> Pair:
    no_pred, no_truth = pred == none, truth == none
    core = window.slices_in(outer)
    both = int(np.count_nonzero(no_pred[core] & no_truth[core]))
    alone = [int(np.count_nonzero(missing[core])) - both for missing in (no_pred, no_truth)]
    pred[no_truth] = none
    truth[no_pred] = none
    return Pair(window, outer, pred, truth, none, (alone[0], alone[1], both))
