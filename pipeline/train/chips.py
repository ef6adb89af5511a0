"""Training samples: which windows, in what order. A function of seed and step, so that resuming equals not stopping."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.grid import Window, iter_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.train.settings import ChipSettings
    from pipeline.train.split import Area


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chip lies."""

    view: int
    """Which scene."""
    window: Window
    """In the network's pixels; may reach over the area's rim where the area is smaller."""
    area: Window
    """What may be seen: nothing outside is learnt from."""


@dataclass(frozen=True, slots=True, eq=False)
class ChipPlaces:
    """Draws places of chips.

    Args:
        areas: Of the training part.
        class_places: Per class, `(place, 3)` of area, row, column.
        settings: Size and how to draw.
        seed: Same seed and step, same places.
    """

    areas: tuple[Area, ...]
    class_places: tuple[NDArray[np.int64], ...]
    settings: ChipSettings
    seed: int
    _few: list[Place] = field(init=False)
    """The only places, where their number is limited."""
    _grid: list[Place] = field(init=False)
    """Side by side, where asked for."""

    def __post_init__(self) -> None:
        """Lay out what does not change from step to step."""
        grid = self._side_by_side() if self.settings.sampling == "grid" else []
        few: list[Place] = []
        if self.settings.limit is not None:
            rng = np.random.default_rng([self.seed, 1])
            few = _apart(lambda: self._draw_one(rng, grid), self.settings.limit)
        object.__setattr__(self, "_grid", grid)
        object.__setattr__(self, "_few", few)

    def of_step(self, step: int) -> list[Place]:
        """The places of a step's chips."""
        batch = self.settings.batch
        if self._few or self._grid:
            pool = self._few or self._grid
            return [pool[_shuffled(self.seed, i, len(pool))] for i in range(step * batch, (step + 1) * batch)]
        rng = np.random.default_rng([self.seed, 2, step])
        return [self._draw_one(rng, []) for _ in range(batch)]

    def _draw_one(self, rng: np.random.Generator, grid: Sequence[Place]) -> Place:
        if grid:
            return grid[int(rng.integers(len(grid)))]
        if self.settings.sampling == "balanced" and rng.random() < 0.5:  # noqa: PLR2004 - half and half
            return self._around_class(rng)
        return self._anywhere(rng)

    def _around_class(self, rng: np.random.Generator) -> Place:
        present = [places for places in self.class_places if len(places)]
        places = present[rng.integers(len(present))]
        number, row, col = places[rng.integers(len(places))]
        size = self.settings.size
        row, col = np.array([row, col]) - rng.integers(0, size, 2)
        return self._inside(int(number), int(row), int(col))

    def _anywhere(self, rng: np.random.Generator) -> Place:
        weights = np.array([area.window.num_pixels for area in self.areas], float)
        number = int(rng.choice(len(weights), p=weights / weights.sum()))
        window, size = self.areas[number].window, self.settings.size
        row = window.row_off + int(rng.integers(0, max(window.height - size, 0) + 1))
        col = window.col_off + int(rng.integers(0, max(window.width - size, 0) + 1))
        return self._inside(number, row, col)

    def _inside(self, number: int, row: int, col: int) -> Place:
        """A place whose chip lies inside its area, or in the middle of one that is smaller."""
        area, size = self.areas[number], self.settings.size
        return Place(
            view=area.view,
            window=Window(
                row_off=_clamped(row, area.window.row_off, area.window.height, size),
                col_off=_clamped(col, area.window.col_off, area.window.width, size),
                height=size,
                width=size,
            ),
            area=area.window,
        )

    def _side_by_side(self) -> list[Place]:
        size = self.settings.size
        return [
            self._inside(number, part.row_off, part.col_off)
            for number, area in enumerate(self.areas)
            for part in iter_parts(area.window, (size, size))
        ]


def _clamped(start: int, first: int, length: int, size: int) -> int:
    if length <= size:
        return first - (size - length) // 2
    return min(max(start, first), first + length - size)


def _shuffled(seed: int, index: int, length: int) -> int:
    """The `index`-th of endless rounds through `length` things, each round in an order of its own."""
    lap, place = divmod(index, length)
    return int(np.random.default_rng([seed, 3, lap]).permutation(length)[place])


_TRIES = 50


def _apart(draw: Callable[[], Place], count: int) -> list[Place]:
    """So many places, apart from each other where there is room."""
    chosen: list[Place] = []
    for _ in range(count):
        for _ in range(_TRIES):
            place = draw()
            if not any(place.view == p.view and place.window.intersect(p.window).num_pixels for p in chosen):
                break
        chosen.append(place)
    return chosen
