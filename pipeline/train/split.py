"""Which parts of the scenes are learnt from, which choose the best state, and which are kept for the end.

Pixels beside each other look alike, so a test on pixels between training pixels flatters: parts are blocks or areas,
with a guard between them. Source: Roberts et al. 2017, doi:10.1111/ecog.02881.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from pipeline.errors import InputError
from pipeline.grid import Window, iter_windows
from pipeline.train.target import IGNORE, to_pixels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.train.data import LabelledView
    from pipeline.train.settings import SplitSettings

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
_DRAWS = 64
"""Draws of blocks, of which the one whose parts have the most similar classes is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """A rectangle of a scene, in the network's pixels."""

    view: int
    """Which scene, from 0."""
    window: Window


Split = dict[Part, tuple[Area, ...]]


def make_split(views: Sequence[LabelledView], settings: SplitSettings, *, num_classes: int) -> Split:
    """The three parts.

    Raises:
        InputError: TR-010 the file of areas cannot be read or names no training area; TR-011 parts overlap; TR-012
            there are too few blocks.
    """
    split = _from_file(views, settings.areas) if settings.areas else _from_blocks(views, settings, num_classes)
    require_apart(split)
    return split


def require_apart(split: Mapping[Part, Sequence[Area]]) -> None:
    """Refuse parts that share pixels: what was learnt from is no test.

    Raises:
        InputError: TR-011, with the first two that overlap.
    """
    flat = [(part, area) for part in PARTS for area in split.get(part, ())]
    for i, (part, one) in enumerate(flat):
        for other_part, other in flat[i + 1 :]:
            if part == other_part or one.view != other.view:
                continue
            common = one.window.intersect(other.window)
            if common.num_pixels:
                raise InputError(
                    f"the areas {part} ({one.window}) and {other_part} ({other.window}) share {common}",
                    code="TR-011",
                    title="Parts of the split overlap",
                    where=f"scene {one.view}",
                    fix="draw areas that do not touch: a test on pixels that were learnt from says nothing",
                )


def _from_file(views: Sequence[LabelledView], path: Path) -> Split:
    shapes, names, crs = _read_areas(path)
    split: dict[Part, list[Area]] = {part: [] for part in PARTS}
    for number, view in enumerate(views):
        box = view.geobox
        if box.crs_wkt is None:
            continue
        pixels = to_pixels(shapes, crs, box)
        for shape, name in zip(pixels, names, strict=True):
            window = _inner(shapely.bounds(shape)).intersect(view.whole)
            if window.num_pixels:
                split[name].append(Area(view=number, window=window))
    if not split["train"]:
        raise _areas_error(path, "none of its areas with `split` = train lies on a scene")
    return {part: tuple(areas) for part, areas in split.items()}


def _inner(bounds: NDArray[np.float64]) -> Window:
    """Whole pixels inside bounds; what is a hundredth of a pixel off counts as on the line."""
    x0, y0, x1, y1 = (float(v) for v in bounds)
    return Window.from_bounds(
        int(np.ceil(y0 - 0.01)), int(np.ceil(x0 - 0.01)), int(np.floor(y1 + 0.01)), int(np.floor(x1 + 0.01))
    )


def _read_areas(path: Path) -> tuple[NDArray[np.object_], list[Part], str]:
    try:
        meta, _, wkb, columns = pyogrio.raw.read(path, layer=0, columns=["split"])
    except (DataSourceError, DataLayerError, OSError) as error:
        raise _areas_error(path, str(error)) from error
    if not len(columns):
        raise _areas_error(path, "its features have no attribute `split`")
    wrong = sorted({str(v) for v in columns[0]} - set(PARTS))
    if wrong:
        raise _areas_error(path, f"`split` is {', '.join(wrong)}, expected train, val or test")
    if not meta["crs"]:
        raise _areas_error(path, "it has no CRS")
    return np.asarray(shapely.from_wkb(wkb), dtype=object), [_part(v) for v in columns[0]], meta["crs"]


def _part(value: Any) -> Part:
    return next(part for part in PARTS if part == value)


def _areas_error(path: Path, why: str) -> InputError:
    return InputError(
        f"the areas of the split cannot be used: {why}",
        code="TR-010",
        title="Areas of the split not usable",
        where=str(path),
        fix="give polygons with an attribute `split` that is train, val or test",
    )


def _from_blocks(views: Sequence[LabelledView], settings: SplitSettings, num_classes: int) -> Split:
    blocks = [
        (number, window)
        for number, view in enumerate(views)
        for window in iter_windows(view.geobox.shape, (settings.block_px, settings.block_px))
    ]
    counts = np.array([_class_counts(views[n], w, num_classes) for n, w in blocks])
    known = np.flatnonzero(counts.sum(axis=1))
    sizes = _sizes(len(known), settings)
    parts = dict.fromkeys(range(len(blocks)), "")
    parts |= dict(zip(known.tolist(), _draw(counts[known], sizes, settings.seed), strict=True))
    split: dict[Part, list[Area]] = {part: [] for part in PARTS}
    for i, (number, window) in enumerate(blocks):
        if parts[i]:
            kept = _guarded(window, i, blocks, parts, settings.guard_px)
            if kept.num_pixels:
                split[_part(parts[i])].append(Area(view=number, window=kept))
    return {part: tuple(areas) for part, areas in split.items()}


def _sizes(blocks: int, settings: SplitSettings) -> tuple[int, int]:
    """How many blocks validate and test: at least one where a share is asked for, and one is left to learn from."""
    val, test = (max(1, round(blocks * share)) if share else 0 for share in (settings.val, settings.test))
    if val + test >= blocks:
        raise InputError(
            f"{blocks} blocks of {settings.block_px} px have labels, too few for training, validation and test",
            code="TR-012",
            title="Too few blocks to split",
            where="split.block_px",
            fix="make split.block_px smaller, or draw the areas yourself and give them with split.areas",
        )
    return val, test


def _draw(counts: NDArray[np.int64], sizes: tuple[int, int], seed: int) -> list[Part]:
    """Parts of blocks: of many draws the one in which the parts' shares of classes differ least."""
    val, test = sizes
    rng = np.random.default_rng([seed, 0x5EED])
    best: tuple[float, list[Part]] | None = None
    for _ in range(_DRAWS):
        order = rng.permutation(len(counts))
        groups = order[val + test :], order[:val], order[val : val + test]
        shares = [counts[g].sum(axis=0) / max(counts[g].sum(), 1) for g in groups if len(g)]
        spread = float(np.ptp(shares, axis=0).max())
        if best is None or spread < best[0]:
            parts: list[Part] = ["train"] * len(counts)
            for name, group in zip(PARTS, groups, strict=True):
                for i in group:
                    parts[i] = name
            best = spread, parts
    assert best is not None
    return best[1]


def _guarded(
    window: Window, index: int, blocks: Sequence[tuple[int, Window]], parts: Mapping[int, str], guard_px: int
) -> Window:
    """The block without what lies within `guard_px` of a block of another part."""
    view = blocks[index][0]
    top = left = bottom = right = 0
    for other, (number, near) in enumerate(blocks):
        if number != view or not parts[other] or parts[other] == parts[index]:
            continue
        touching = window.expand(guard_px).intersect(near)
        if not touching.num_pixels:
            continue
        if near.row_stop <= window.row_off:
            top = guard_px
        elif near.row_off >= window.row_stop:
            bottom = guard_px
        elif near.col_stop <= window.col_off:
            left = guard_px
        else:
            right = guard_px
    return Window.from_bounds(
        window.row_off + top, window.col_off + left, window.row_stop - bottom, window.col_stop - right
    )


def _class_counts(view: LabelledView, window: Window, num_classes: int) -> NDArray[np.int64]:
    target = view.read(window).target
    return np.bincount(target[target != IGNORE], minlength=num_classes)[:num_classes].astype(np.int64)
