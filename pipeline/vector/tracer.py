"""All regions of a mask into spools: sieved if that was asked for, traced here or by several hands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.grid import iter_windows
from pipeline.vector.blocks import Tracing, trace_in_blocks
from pipeline.vector.join import iter_regions
from pipeline.vector.sieve import sieved
from pipeline.vector.spool import SpoolWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.grid import GeoBox
    from pipeline.vector.area import PixelAreas
    from pipeline.vector.blocks import Hands
    from pipeline.vector.layer import Layer
    from pipeline.vector.spool import Smallest

    Progress = Callable[[int, int], None]

_FEW_TILES = 8
"""Up to here others are no help: what they are sent, and what they leave in files, takes about as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracer:
    """How a mask is traced."""

    geobox: GeoBox
    tile_hw: tuple[int, int]
    nodes: bool
    """See `iter_regions`."""
    smallest: Smallest
    """Which regions stay."""
    folder: Path
    """For the spools."""
    hands: Hands | None
    """Who traces; None for this process."""

    def trace(
        self, layers: Sequence[Layer], limits: Sequence[tuple[PixelAreas, float]], progress: Progress | None
    ) -> Path:
        """Regions of all layers.

        Args:
            layers: In the order of their classes.
            limits: Regions below these are given to their neighbours first, one limit after the other.
            progress: Called with (steps done, steps in all).

        Returns:
            A spool, or a folder of some.
        """
        count, sweeps = len(layers) * (len(limits) + 1), 0
        ready = []
        for layer in layers:
            for limit in limits:
                layer = self._sieved(layer, *limit, _part(progress, sweeps, count))  # noqa: PLW2901 - one after the other
                sweeps += 1
            ready.append(layer)
        tell = [_part(progress, sweeps + number, count) for number in range(len(ready))]
        many = len(list(iter_windows(self.geobox.shape, self.tile_hw))) > _FEW_TILES
        if self.hands is not None and many:
            return self._by_hands(self.hands, ready, tell)
        return self._here(ready, tell)

    def _sieved(self, layer: Layer, areas: PixelAreas, least: float, progress: Progress | None) -> Layer:
        shape_hw = self.geobox.shape
        with layer.open() as opened:
            made = sieved(
                opened.read, shape_hw, tile_hw=self.tile_hw, areas=areas, min_area_m2=least, progress=progress
            )
        return dataclasses.replace(layer, sieves=(*layer.sieves, made.changes))

    def _here(self, layers: Sequence[Layer], progress: Sequence[Progress | None]) -> Path:
        spool = SpoolWriter(
            self.folder / "regions.arrow", self.geobox.shape, self.smallest.areas, self.smallest, nodes=self.nodes
        )
        for layer, tell in zip(layers, progress, strict=True):
            with layer.open() as opened:
                for regions in iter_regions(
                    opened.read, self.geobox.shape, tile_hw=self.tile_hw, nodes=self.nodes, measure=opened.measure,
                    progress=tell,
                ):  # fmt: skip
                    spool.add(layer.named(regions))
        spool.close()
        return spool.path

    def _by_hands(self, hands: Hands, layers: Sequence[Layer], progress: Sequence[Progress | None]) -> Path:
        folder, found = self.folder.absolute() / "regions", 0
        folder.mkdir()
        for number, (layer, tell) in enumerate(zip(layers, progress, strict=True)):
            tracing = Tracing(
                layer=layer.anywhere(), geobox=self.geobox, tile_hw=self.tile_hw, nodes=self.nodes,
                least_m2=self.smallest.m2, least_px=self.smallest.px, folder=folder, name=str(number),
            )  # fmt: skip
            found = trace_in_blocks(tracing, hands, found=found, progress=tell)
        return folder


def _part(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress of one of several equal sweeps as that of all."""
    return None if progress is None else lambda done, total: progress(number * total + done, count * total)
