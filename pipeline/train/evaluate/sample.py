"""TRUTH as a sample: units of known strata, each with one reference class; strata are weighed by the whole PRED."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.errors import InputError
from pipeline.grid import Window, iter_parts, iter_windows
from pipeline.train.burn import burn
from pipeline.train.evaluate.faults import unusable_truth
from pipeline.train.evaluate.pairs import WINDOW_PX
from pipeline.train.evaluate.polygons import indices_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.train.evaluate.classes import Classes, Recode
    from pipeline.train.evaluate.rasters import ClassRaster, Source
    from pipeline.train.evaluate.vectors import VectorFile


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The sample, one element per unit in each array."""

    kind: str
    """`points` or `polygons`."""
    shapes: NDArray[np.object_]
    """In PRED's pixels."""
    rows: NDArray[np.int64]
    """Row of the point, or of a point inside the polygon."""
    cols: NDArray[np.int64]
    reference: NDArray[Any]
    """Index of the reference class, or `none`."""
    stratum: NDArray[np.object_] | None
    """What the file says of its stratum."""


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """What was found under the units, and how large the strata are."""

    mapped: NDArray[Any]
    """Index of PRED's class of each unit, or `none`."""
    class_px: NDArray[np.int64]
    """Pixels of each class of PRED."""
    strata_px: dict[int, int]
    """Pixels of each number in the raster of strata, where PRED has a class; empty without one."""
    strata_at: NDArray[np.int64]
    """That raster's number at each unit, -1 where it has none."""


def read_units(file: VectorFile, recode: Recode, attribute: str, stratum: str | None) -> Units:
    """The sample's units that may lie on PRED.

    Raises:
        InputError: EV-002, other shapes than points or polygons, or both; EV-005, a class that PRED does not have.
    """
    features = file.all_rows([attribute, *([stratum] if stratum else [])])
    kinds = set(np.unique(shapely.get_type_id(features.shapes)).tolist())
    shapes = features.shapes
    if kinds <= {0, 4}:  # points, and multi-points of one
        kind, places = "points", shapely.centroid(shapes)
    elif kinds <= {3, 6}:
        kind, shapes = "polygons", np.asarray(shapely.make_valid(shapes), object)
        places = shapely.point_on_surface(shapes)
    else:
        raise unusable_truth(
            f"{file.path.name} has shapes of several kinds, or lines; expected points, or polygons", file.path
        )
    return Units(
        kind,
        shapes,
        np.floor(shapely.get_y(places)).astype(np.int64),
        np.floor(shapely.get_x(places)).astype(np.int64),
        indices_of(features.columns[attribute], recode, file, attribute),
        features.columns[stratum] if stratum else None,
    )


def tally(
    pred: Source,
    shape: tuple[int, int],
    units: Units,
    classes: Classes,
    *,
    strata: ClassRaster | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tally:
    """One pass over PRED, and over the raster of strata if there is one."""
    mapped = np.full(len(units.rows), classes.none, classes.dtype)
    class_px, strata_px = np.zeros(len(classes), np.int64), dict[int, int]()
    strata_at = np.full(len(units.rows), -1, np.int64)
    windows = list(iter_windows(shape, (WINDOW_PX, WINDOW_PX)))
    for done, window in enumerate(windows, start=1):
        block = pred.read(window)
        class_px += np.bincount(block.ravel(), minlength=classes.none + 1)[: len(classes)]
        here, place = _inside(units, window)
        mapped[here] = block[place]
        if strata is not None:
            values, valid = strata.values(window)
            known = (block != classes.none) & (True if valid is None else valid)
            for value, pixels in zip(*np.unique(values[known], return_counts=True), strict=True):
                strata_px[int(value)] = strata_px.get(int(value), 0) + int(pixels)
            strata_at[here] = np.where(known[place], values[place], -1)
        if progress is not None:
            progress(done, len(windows))
    if units.kind == "polygons":
        whole = Window.from_bounds(0, 0, *shape)
        for number, polygon in enumerate(units.shapes):
            votes = _votes(pred, polygon, whole, classes)
            if votes.any():
                mapped[number] = votes.argmax()
    return Tally(mapped, class_px, strata_px, strata_at)


def _inside(units: Units, window: Window) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Numbers of the units in a window, and their rows and columns there."""
    rows, cols = units.rows - window.row_off, units.cols - window.col_off
    here = np.flatnonzero((rows >= 0) & (rows < window.height) & (cols >= 0) & (cols < window.width))
    return here, (rows[here], cols[here])


def _votes(pred: Source, polygon: Any, whole: Window, classes: Classes) -> NDArray[np.int64]:
    """Pixels of each class of PRED whose centres lie in a polygon."""
    votes = np.zeros(len(classes), np.int64)
    x0, y0, x1, y1 = shapely.bounds(polygon).tolist()
    box = Window.from_bounds(int(y0) - 1, int(x0) - 1, int(y1) + 2, int(x1) + 2).intersect(whole)
    for window in iter_parts(box, (WINDOW_PX, WINDOW_PX)):
        inside = burn(np.array([polygon], object), np.ones(1, np.uint8), window, fill=0, dtype=np.uint8) == 1
        votes += np.bincount(pred.read(window)[inside], minlength=classes.none + 1)[: len(classes)]
    return votes


@dataclass(frozen=True, slots=True, eq=False)
class Strata:
    """Strata with their sizes, and which of them each unit belongs to."""

    what: str
    """What they are, in words."""
    names: tuple[str, ...]
    sizes_px: NDArray[np.int64]
    of_unit: NDArray[np.int64]
    """Position of each unit's stratum, -1 where it has none."""


def find_strata(units: Units, found: Tally, classes: Classes, *, strata: ClassRaster | None, where: str) -> Strata:
    """Strata of the design: PRED's classes, or those of a raster.

    Raises:
        InputError: EV-011, the file names a stratum whose size nobody knows.
    """
    if strata is None:
        names, sizes, what = classes.names, found.class_px, "classes of PRED"
        position = {name: i for i, name in enumerate(names)} | {str(v): i for i, v in enumerate(classes.values)}
        at = np.where(found.mapped == classes.none, -1, found.mapped.astype(np.int64))
    else:
        legend = strata.legend.names() if strata.legend is not None else {}
        values = sorted(found.strata_px)
        names, what = tuple(legend.get(v, str(v)) for v in values), f"raster {strata.path.name}"
        sizes = np.array([found.strata_px[v] for v in values], np.int64)
        position = {name: i for i, name in enumerate(names)} | {str(v): i for i, v in enumerate(values)}
        lookup = {v: i for i, v in enumerate(values)}
        at = np.array([lookup.get(v, -1) for v in found.strata_at.tolist()], np.int64)
    if units.stratum is not None:
        at = np.array([position.get(_label(v), -1) for v in units.stratum.tolist()], np.int64)
        strange = sorted({_label(v) for v in units.stratum.tolist()} - position.keys())
        if strange:
            raise InputError(
                f"the sample's strata {', '.join(strange[:10])} are none of {', '.join(names[:24])} ({what})",
                code="EV-011",
                title="Size of a stratum is not known",
                where=where,
                fix="give a raster of the strata of the design: --strata FILE.tif",
            )
    return Strata(what, tuple(names), sizes, at)


def _label(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
