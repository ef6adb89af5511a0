"""Polygons as TRUTH: burnt block by block on PRED's grid, a pixel belongs to what its centre lies in."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.grid import Window
from pipeline.train.burn import burn
from pipeline.train.evaluate.classes import mismatch
from pipeline.train.evaluate.faults import no_overlap, unclear, unusable_truth
from pipeline.train.evaluate.vectors import Features

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.train.evaluate.classes import Classes, Recode
    from pipeline.train.evaluate.rasters import Indices
    from pipeline.train.evaluate.vectors import VectorFile

_BLOCK_PX = 1024  # polygons are burnt in blocks of this side that start at the scene's origin
_ROWS_KEPT = 4
_BLOCKS_KEPT = 160


class PolygonTruth:
    """A `Source` made of polygons; features of a few rows of blocks are held at a time.

    Law: a window's indices equal that part of the whole scene's. Therefore polygons are burnt in fixed blocks: a
    window's own origin would round edges that run through pixel centres this way or that. Later
    features cover earlier ones.

    Args:
        file: Where they are.
        shape: Of PRED.
        recode: What attributes mean.
        attribute: Holds names or numbers of classes; None where all polygons are of one class.
        outside: Index of pixels that no polygon covers, or `classes.none`.

    Raises:
        InputError: EV-003, no polygon touches PRED; EV-002, there are none.
    """

    def __init__(
        self,
        file: VectorFile,
        shape: tuple[int, int],
        recode: Recode,
        *,
        attribute: str | None,
        outside: int,
        only: int,
    ) -> None:
        self._file, self._shape, self._recode = file, shape, recode
        self._attribute, self._outside, self._only = attribute, outside, only
        self._classes = recode.classes
        self._rows: OrderedDict[int, tuple[shapely.STRtree, NDArray[Any]]] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Indices] = OrderedDict()
        self.found = False
        """Whether any polygon has been met."""

    def read(self, window: Window) -> Indices:
        """Indices `(y, x)`.

        Raises:
            InputError: EV-005, an attribute that is no class.
        """
        found = np.full(window.shape, self._outside, self._classes.dtype)
        for row in range(window.row_off // _BLOCK_PX, -(-window.row_stop // _BLOCK_PX)):
            for col in range(window.col_off // _BLOCK_PX, -(-window.col_stop // _BLOCK_PX)):
                block = Window(row_off=row * _BLOCK_PX, col_off=col * _BLOCK_PX, height=_BLOCK_PX, width=_BLOCK_PX)
                common = window.intersect(block)
                found[common.slices_in(window)] = self._block(row, col, block)[common.slices_in(block)]
        return found

    def require_any(self) -> None:
        """Refuse a file none of whose polygons touched PRED; call it at the end."""
        if not self.found:
            count = self._file.count
            if not count:
                raise unusable_truth(f"{self._file.path.name} has no features", self._file.path)
            raise no_overlap(f"none of the {count} features of {self._file.path.name} touches PRED", self._file.path)

    def _block(self, row: int, col: int, block: Window) -> Indices:
        key = (row, col)
        if key not in self._blocks:
            self._blocks[key] = self._burn(row, block)
            if len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def _burn(self, row: int, block: Window) -> Indices:
        tree, indices = self._of_row(row)
        box = shapely.box(block.col_off, block.row_off, block.col_stop, block.row_stop)
        touching = np.sort(tree.query(box, predicate="intersects")) if len(indices) else np.empty(0, np.int64)
        if not len(touching):
            return np.full(block.shape, self._outside, self._classes.dtype)
        self.found = True
        return burn(tree.geometries[touching], indices[touching], block, fill=self._outside, dtype=self._classes.dtype)

    def _of_row(self, row: int) -> tuple[shapely.STRtree, NDArray[Any]]:
        """Polygons that touch a row of blocks, and their indices."""
        if row not in self._rows:
            start, stop = row * _BLOCK_PX, min((row + 1) * _BLOCK_PX, self._shape[0])
            features = polygons_of(self._file.rows(start, stop, [self._attribute] if self._attribute else []))
            self._rows[row] = (shapely.STRtree(features.shapes), self._indices(features))
            if len(self._rows) > _ROWS_KEPT:
                self._rows.popitem(last=False)
        return self._rows[row]

    def _indices(self, features: Features) -> NDArray[Any]:
        if self._attribute is None:
            return np.full(len(features.shapes), self._only, self._classes.dtype)
        return indices_of(features.columns[self._attribute], self._recode, self._file, self._attribute)


def polygons_of(features: Features) -> Features:
    """Valid polygons, one by one, in the same order: collections taken apart, bow ties repaired, the rest dropped."""
    repaired = shapely.make_valid(features.shapes)
    parts, owner = shapely.get_parts(repaired, return_index=True)
    flat, again = shapely.get_parts(parts, return_index=True)  # multi-polygons inside collections
    owner = owner[again]
    keep = shapely.get_type_id(flat) == shapely.GeometryType.POLYGON
    return Features(flat[keep], {name: column[owner[keep]] for name, column in features.columns.items()})


def indices_of(column: NDArray[Any], recode: Recode, file: VectorFile, attribute: str) -> NDArray[Any]:
    """Indices of attributes: names, or numbers of any type; what has none is left out.

    Raises:
        InputError: EV-005, neither a name nor a number of a class.
    """
    classes, known = recode.classes, {}
    for value in {v for v in column.tolist() if not _missing(v)}:
        number, name = _number_or_name(value)
        known[value] = recode.index(number, name)
    strange = sorted(str(value) for value, index in known.items() if index == classes.unknown)
    if strange:
        have = ", ".join(strange[:10]) + (" …" if len(strange) > 10 else "")  # noqa: PLR2004 - a line's worth
        raise mismatch(f"the values {have} of `{attribute}`, which are no classes of PRED", classes, str(file.path))
    return np.array([classes.none if _missing(v) else known[v] for v in column.tolist()], classes.dtype)


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def _number_or_name(value: Any) -> tuple[int | None, str | None]:
    if isinstance(value, int | float) and float(value).is_integer():
        return int(value), None
    text = str(value).strip()
    return (int(text), None) if text.isdecimal() else (None, text)


def the_only_class(classes: Classes, file: VectorFile) -> int:
    """Index of polygons without an attribute: PRED must have one class beside its background.

    Raises:
        UsageError: EV-006, it has not.
    """
    others = [i for i in range(len(classes)) if i != classes.background]
    if classes.background is None and len(classes) == 2:  # noqa: PLR2004 - nothing and something
        others = [1]
    if len(others) != 1:
        fields = ", ".join(file.fields[:30]) or "none"
        raise unclear(
            f"PRED has the classes {classes}, so which of them a polygon is must be told; its attributes are {fields}",
            fix="name the attribute that holds the class: --attribute NAME",
        )
    return others[0]


def outside_polygons(text: str | int | None, classes: Classes) -> int:
    """Index of pixels that no polygon covers.

    Raises:
        UsageError: EV-006, it was not told and PRED has no background; or it is no class.
    """
    if text is None:
        if classes.background is not None:
            return classes.background
        raise unclear(
            f"what are pixels outside all polygons? PRED's classes ({classes}) name no background",
            fix="--outside CLASS where everything has been digitised, --outside ignore where it has not",
        )
    if text == "ignore":
        return classes.none
    index = classes.index(text)
    if index is None:
        raise unclear(f"--outside names class {text!r}; PRED has {classes}", fix="use one of these, or `ignore`")
    return index
