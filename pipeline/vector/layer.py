"""What one sweep over a mask reads: a recipe, so that whoever traces a part of it opens the same files."""

from __future__ import annotations

import dataclasses
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.vector.confidence import open_probabilities
from pipeline.vector.facts import UNSURE_BELOW, Measure
from pipeline.vector.mask_file import open_masks
from pipeline.vector.pieces import Cells
from pipeline.vector.sieve import Sieved

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.grid import Window
    from pipeline.vector.confidence import Probabilities
    from pipeline.vector.join import Regions
    from pipeline.vector.mosaic import MaskSource, Reader
    from pipeline.vector.rings import Ints


class OpenLayer(NamedTuple):
    """A layer while its files are open."""

    read: Reader
    """Gives the cells of a window."""
    measure: Measure
    """What regions are told beside their outline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One coverage of a mask: regions of it do not overlap."""

    masks: tuple[Path, ...]
    """Files, traced as one."""
    value: int | None = None
    """The class of all cells, where each band of the mask holds one class; None where one band holds all."""
    include: frozenset[int] | None = None
    """Classes that are wanted, of a mask whose band holds all; None for all."""
    probabilities: Path | None = None
    """File of the probabilities kept with the mask."""
    sieves: tuple[Mapping[Window, Ints], ...] = ()
    """What was given to neighbours, one after the other; see `Sieved`."""

    def anywhere(self) -> Layer:
        """The same for processes that stand in another folder."""
        masks = tuple(mask.absolute() for mask in self.masks)
        return dataclasses.replace(
            self, masks=masks, probabilities=self.probabilities and self.probabilities.absolute()
        )

    @contextmanager
    def open(self) -> Iterator[OpenLayer]:
        """Open the files.

        Raises:
            InputError: As `open_masks` and `open_probabilities`.
        """
        with ExitStack() as files:
            mask = files.enter_context(open_masks(self.masks, many_bands=self.value is not None))
            kept = None
            if self.probabilities is not None:
                kept = files.enter_context(open_probabilities(self.probabilities, mask.geobox))
            unsieved = read = self._reader(mask)
            for changes in self.sieves:
                read = Sieved(read, changes)
            yield OpenLayer(read, self._measure(unsieved, mask.geobox.shape, kept))

    def named(self, regions: Regions) -> Regions:
        """Regions with their class, where the layer has but one."""
        return regions if self.value is None else regions.of_class(self.value)

    def _reader(self, mask: MaskSource) -> Reader:
        if self.value is not None:
            return _chosen(mask.bands[self.value], frozenset({1}))
        return mask.bands[0] if self.include is None else _chosen(mask.bands[0], self.include)

    def _measure(self, read: Reader, shape_hw: tuple[int, int], kept: Probabilities | None) -> Measure:
        if kept is None:
            return Measure(read=read, shape_hw=shape_hw)
        value = self.value
        steps = kept.of_classes if value is None else lambda window, _: kept.of_class(window, value)
        return Measure(read=read, shape_hw=shape_hw, steps=steps, unsure_below=math.ceil(UNSURE_BELOW * kept.steps))


def layers_of(
    masks: tuple[Path, ...],
    num_bands: int,
    include: frozenset[int] | None,
    probabilities: Path | None,
    *,
    bands_are_classes: bool,
) -> list[Layer]:
    """All layers of a mask, in the order of their classes."""
    if not bands_are_classes:
        return [Layer(masks=masks, include=include, probabilities=probabilities)]
    numbers = range(num_bands)
    wanted = numbers if include is None else sorted(include & set(numbers))
    return [Layer(masks=masks, value=value, probabilities=probabilities) for value in wanted]


def _chosen(read: Reader, include: frozenset[int]) -> Reader:
    """Cells of some classes only."""

    def read_chosen(window: Window) -> Cells:
        values, _, valid = read(window)
        chosen = np.isin(values, list(include))
        return Cells(values, chosen if valid is None else valid & chosen, valid)

    return read_chosen
