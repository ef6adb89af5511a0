"""What becomes of regions once all are traced: holes, corners, staircases, walls; of whole outlines, never of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.vector.connect import connect_spool, touching_groups
from pipeline.vector.fill import fill_spool
from pipeline.vector.regularize import Grid, Outcome, Regularization, regularize_spool
from pipeline.vector.simplify import simplify_spool

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.grid import GeoBox
    from pipeline.vector.spool import Smallest


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """What becomes of regions once all are traced, one file after the other in a folder."""

    folder: Path
    geobox: GeoBox
    """Of the mask."""
    smallest: Smallest
    """Which features stay, once they are finished."""
    holes: Smallest
    """Which holes stay."""
    joins: bool
    """Whether regions that touch at corners are one feature."""
    smooth: bool
    """Whether staircases go."""
    tolerance_px: float | None
    """Of the simplification."""
    regularize: Regularization | None
    """Which polygons get straight walls."""
    by_class: bool
    """Whether classes overlap."""

    @property
    def limit_of_regions(self) -> Smallest:
        """Which regions are worth keeping now: all, where they may yet grow."""
        return self.smallest.but_all() if self.joins or self.holes.leaves_out else self.smallest

    @property
    def moves_vertices(self) -> bool:
        """Whether outlines leave the pixels' edges, for which neighbours must share all vertices."""
        return self.smooth or self.tolerance_px is not None or self.regularize is not None

    def finished(self, path: Path) -> tuple[Path, Outcome | None]:
        """The last file, from that of the regions, and what became of walls."""
        if self.holes.leaves_out:
            limit = self.smallest.but_all() if self.joins else self.smallest
            path = fill_spool(
                path, self.folder / "filled.arrow", holes=self.holes, smallest=limit, width=self.geobox.width,
                by_class=self.by_class,
            )  # fmt: skip
        groups = touching_groups(path, self.geobox.shape) if self.joins else None
        traced = path
        if self.smooth or self.tolerance_px is not None:
            path = simplify_spool(
                path, self.folder / "simplified.arrow", scene_hw=self.geobox.shape, smooth=self.smooth,
                tolerance_px=self.tolerance_px, by_class=self.by_class,
            )  # fmt: skip
        outcome = None
        if self.regularize is not None:
            straight = self.folder / "regularized.arrow"
            outcome = regularize_spool(
                traced, path, straight, self.regularize,
                grid=Grid.of(self.geobox), tolerance_px=self.tolerance_px or 0.0, by_class=self.by_class,
            )  # fmt: skip
            path = straight
        if groups is not None:
            path = connect_spool(path, self.folder / "joined.arrow", groups, self.smallest)
        return path, outcome
