"""Mask files to a set of polygons, tile by tile, in bounded memory: checks, and the order of the steps."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.errors import UsageError
from pipeline.processes import make_temporary_folder
from pipeline.vector.after import After
from pipeline.vector.area import PixelAreas, mean_pixel_m
from pipeline.vector.confidence import open_probabilities
from pipeline.vector.faults import disk_errors
from pipeline.vector.layer import layers_of
from pipeline.vector.mask_file import open_masks
from pipeline.vector.polygonset import PolygonSet
from pipeline.vector.spool import Smallest
from pipeline.vector.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.vector.blocks import Hands
    from pipeline.vector.regularize import Regularization
    from pipeline.vector.simplify import Tolerance


def polygonize(
    mask_path: Path | Sequence[Path],
    *,
    scratch: Path,
    include: frozenset[int] | None = None,
    names: Mapping[int, str] | None = None,
    bands_are_classes: bool = False,
    min_area_m2: float = 0.0,
    min_area_px: float = 0.0,
    fill_holes_m2: float = 0.0,
    fill_holes_px: float = 0.0,
    connectivity: Literal[4, 8] = 4,
    sieve: bool = False,
    smooth: bool = False,
    simplify: Tolerance | None = None,
    probabilities: Path | None = None,
    scene: str | None = None,
    regularize: Regularization | None = None,
    tile_px: int = 1024,
    progress: Callable[[int, int], None] | None = None,
    hands: Hands | None = None,
) -> PolygonSet:
    """Polygons of all connected regions of a mask, as if it had been traced in one piece.

    Args:
        mask_path: GeoTIFF with one band of an integer type, or several with `bands_are_classes`; nodata pixels belong
            to no polygon. Or several that share one grid, traced as one: where they overlap, the first that has a class
            at a pixel gives it.
        scratch: Folder for the spool; made if need be. The returned set removes what it put there.
        include: Classes to polygonize; None for all.
        names: Class value -> name.
        bands_are_classes: Each band holds one class, 1 where it is, as a mask with overlapping classes has them. Class
            0 is the first band.
        min_area_m2: Regions below this geodesic area are left out.
        min_area_px: Regions below so many pixels are left out.
        fill_holes_m2: Holes below this geodesic area are filled; polygons inside them go.
        fill_holes_px: The same in pixels.
        connectivity: With 8, regions of a class that touch at a corner are one multi-polygon.
        sieve: Regions below the minimum area take the class of the neighbour with the longest shared border, all at
            once, instead of being left out. Where bands are classes, they have no neighbours and are left out.
        smooth: Staircases become straight diagonals, for both sides of an edge alike.
        simplify: Corners whose triangle is no larger than the square of this are taken away, shared edges once for
            both sides; None leaves every pixel's edge.
        probabilities: File of the probabilities that were kept with the mask; polygons are then told how sure the
            network was.
        regularize: Polygons of these classes get straight walls and right angles where that keeps enough of what they
            cover; what touches them follows.
        scene: What the mask was made of, for the attribute of that name; what the mask itself tells if not given.
        tile_px: Side of the squares in which the mask is read: memory and speed, never the result.
        progress: Called after each step with (steps done, steps in all): two for each tile and sweep.
        hands: Who traces, for masks of more than a few tiles; this process if not given. The polygons are the same.

    Returns:
        A context manager over the polygons, in the order of their first pixels.

    Raises:
        UsageError: CF-031 and CF-034, a minimum area in m² or a tolerance in metres without a CRS; CF-032, an option
            out of range.
        InputError: IN-030, not an integer type; IN-031, unreadable or not one band; IN-032, a class number too large;
            IN-016 and IN-033 to IN-035, masks that do not fit together; IN-036, probabilities of another mask.
        ResourceError: RS-002, the disk with `scratch` is full; RS-006 and RS-007, more polygons than can be
            regularized, or put in order.
    """
    _check_options(min(min_area_m2, min_area_px, fill_holes_m2, fill_holes_px), tile_px, simplify, regularize)
    paths = (mask_path,) if isinstance(mask_path, Path) else tuple(mask_path)
    with open_masks(paths, many_bands=bands_are_classes) as mask:
        geobox, made_of, num_bands = mask.geobox, mask.scene, len(mask.bands)
    with open_probabilities(probabilities, geobox) if probabilities else nullcontext() as kept:
        probability_steps = None if kept is None else kept.steps
    areas = PixelAreas.of(geobox)
    if max(min_area_m2, fill_holes_m2) > 0 and areas is None:
        raise _no_crs_to_measure_in(str(paths[0]), max(min_area_m2, fill_holes_m2))
    tolerance_px = None if simplify is None else simplify.to_px(mean_pixel_m(areas, geobox.shape))
    limits: list[tuple[PixelAreas, float]] = []
    if sieve and not bands_are_classes:
        limits = _sieve_limits(areas, geobox.shape, min_area_m2, min_area_px)
        min_area_m2 = min_area_px = 0.0  # what the sieve could not give away at once stays
    folder = _folder_in(scratch)
    try:
        after = After(
            folder=folder,
            geobox=geobox,
            smallest=Smallest(areas=areas, m2=min_area_m2, px=min_area_px),
            holes=Smallest(areas=areas, m2=fill_holes_m2, px=fill_holes_px),
            joins=connectivity == 8,  # noqa: PLR2004
            smooth=smooth,
            tolerance_px=tolerance_px,
            regularize=regularize,
            by_class=bands_are_classes,
        )
        nodes = after.moves_vertices
        layers = layers_of(paths, num_bands, include, probabilities, bands_are_classes=bands_are_classes)
        tracer = Tracer(
            geobox=geobox, tile_hw=(tile_px, tile_px), nodes=nodes, smallest=after.limit_of_regions, folder=folder,
            hands=hands,
        )  # fmt: skip
        path, regularized = after.finished(tracer.trace(layers, limits, progress))
        return PolygonSet(
            folder,
            spool=path,
            geobox=geobox,
            names=names or {},
            areas=areas,
            on_grid=not nodes,
            scene=scene or made_of,
            probability_steps=probability_steps,
            multi=after.joins,
            regularized=regularized,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sieve_limits(
    areas: PixelAreas | None, shape_hw: tuple[int, int], min_area_m2: float, min_area_px: float
) -> list[tuple[PixelAreas, float]]:
    """Sizes below which regions are given away, one after the other, each with what it is measured in."""
    limits = (areas, min_area_m2), (PixelAreas.counting(shape_hw), min_area_px)
    return [(by, least) for by, least in limits if by is not None and least]


def _folder_in(scratch: Path) -> Path:
    with disk_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        return make_temporary_folder(scratch, "polygons-")


def _no_crs_to_measure_in(mask_name: str, min_area_m2: float) -> UsageError:
    return UsageError(
        f"a minimum area of {min_area_m2} m² was asked for, but the mask has no CRS to measure in",
        code="CF-031",
        title="Minimum area needs a CRS",
        where=mask_name,
        fix="give the mask a CRS, or leave the minimum area out",
    )


def _check_options(
    min_area_m2: float, tile_px: int, simplify: Tolerance | None, regularize: Regularization | None
) -> None:
    if regularize is not None and not 0 <= regularize.min_iou <= 1:
        raise UsageError(
            f"expected a least intersection over union from 0 to 1, got {regularize.min_iou}",
            code="CF-032",
            title="Option out of range",
            fix="give a share, such as 0.8",
        )
    if tile_px < 1 or not min_area_m2 >= 0 or (simplify is not None and not 0 < simplify.value < np.inf):
        raise UsageError(
            "expected a tile of at least 1 px, a minimum area of at least 0, and a tolerance above 0, got "
            f"{tile_px}, {min_area_m2} and {simplify}",
            code="CF-032",
            title="Option out of range",
            fix="give positive numbers",
        )
