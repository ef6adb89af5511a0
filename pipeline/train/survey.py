"""What the labelled parts hold, looked at once before the first step: counts, band statistics, where classes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError
from pipeline.grid import Window, iter_parts
from pipeline.train.split import PARTS, Area, Part, Split
from pipeline.train.target import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.legend import Legend
    from pipeline.train.data import LabelledView, Sample

_STEP_PX = 512
_MAX_PLACES = 1_000_000
_MIN_LATTICE_PX = 4
_RARE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """What was found."""

    class_px: dict[Part, NDArray[np.int64]]
    """Pixels per class, by part."""
    unknown_px: dict[Part, int]
    """Pixels that are not learnt from: no label, or no data."""
    mean: tuple[float, ...]
    """Per band over the valid pixels of the training part: the same for every tile of every scene, later."""
    std: tuple[float, ...]
    """Likewise; never 0."""
    places: tuple[NDArray[np.int64], ...]
    """Per class, where it is in the training part: `(place, 3)` of area, row, column in the scene."""

    def to_dict(self, legend: Legend) -> dict[str, Any]:
        """As plain values, for the model's card."""
        return {
            part: {
                "pixels": {info.name: int(n) for info, n in zip(legend, self.class_px[part], strict=True)},
                "not_learnt_from": self.unknown_px[part],
            }
            for part in PARTS
        }


def survey(views: Sequence[LabelledView], split: Split, *, num_classes: int) -> Survey:
    """Look at every labelled pixel once.

    Raises:
        InputError: TR-004 labels that are no class (from reading); TR-013 nothing to learn from; TR-014 one class only.
    """
    counts: dict[Part, NDArray[np.int64]] = {part: np.zeros(num_classes, np.int64) for part in PARTS}
    unknown: dict[Part, int] = dict.fromkeys(PARTS, 0)
    bands = len(views[0].scene.bands)
    moments = _Moments(bands)
    lattice = _lattice_px(split["train"])
    places: list[NDArray[np.int64]] = []
    for part in PARTS:
        for number, area in enumerate(split[part]):
            for window in _steps(area.window):
                sample = views[area.view].read(window)
                known = sample.target != IGNORE
                counts[part] += np.bincount(sample.target[known], minlength=num_classes)[:num_classes]
                unknown[part] += int(known.size - known.sum())
                if part == "train":
                    moments.add(sample)
                    places.append(_places(sample.target, window, number, lattice))
    _require_classes(counts["train"], unknown["train"])
    mean, std = moments.result()
    found = np.concatenate(places)
    return Survey(
        class_px=counts,
        unknown_px=unknown,
        mean=mean,
        std=std,
        places=tuple(found[found[:, 3] == value, :3] for value in range(num_classes)),
    )


def warnings_of(found: Survey, legend: Legend) -> list[str]:
    """What a person should know before training, one sentence each."""
    said = []
    train = found.class_px["train"]
    for info, pixels in zip(legend, train, strict=True):
        if not pixels:
            said.append(f"class {info.name} is not in the training part: it will not be found")
        elif pixels < _RARE * train.sum():
            share = pixels / train.sum()
            said.append(f"class {info.name} is {share:.2%} of the training part; balanced sampling helps")
    for part in PARTS[1:]:
        if not found.class_px[part].sum():
            said.append(f"the {part} part has no labels: " + _WITHOUT[part])
            continue
        missing = [i.name for i, n, t in zip(legend, found.class_px[part], train, strict=True) if t and not n]
        if missing:
            said.append(f"the {part} part has no {', '.join(missing)}, so it says nothing about that")
    total = sum(int(c.sum()) for c in found.class_px.values()) + sum(found.unknown_px.values())
    unknown = sum(found.unknown_px.values()) / max(total, 1)
    if unknown > 0.5:  # noqa: PLR2004
        said.append(f"{unknown:.0%} of the pixels have no label or no data, and are not learnt from")
    return said


_WITHOUT = {
    "val": "the last state is kept, not the best",
    "test": "the model's accuracy will not be known",
}


class _Moments:
    """Count, sum and sum of squares per band, over valid pixels."""

    def __init__(self, bands: int) -> None:
        self._count, self._total, self._squares = np.zeros(bands), np.zeros(bands), np.zeros(bands)

    def add(self, sample: Sample) -> None:
        values = sample.data.astype(np.float64)  # 0 where not valid
        self._count += sample.valid.sum(axis=(1, 2))
        self._total += values.sum(axis=(1, 2))
        self._squares += (values**2).sum(axis=(1, 2))

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        count = np.maximum(self._count, 1)
        mean = self._total / count
        std = np.sqrt(np.maximum(self._squares / count - mean**2, 0.0))
        return tuple(float(v) for v in mean), tuple(float(v) or 1.0 for v in std)


def _steps(area: Window) -> list[Window]:
    """Windows that cover an area, along the lines at which blocks are kept."""
    aligned = Window.from_bounds(
        area.row_off // _STEP_PX * _STEP_PX, area.col_off // _STEP_PX * _STEP_PX, area.row_stop, area.col_stop
    )
    parts = (window.intersect(area) for window in iter_parts(aligned, (_STEP_PX, _STEP_PX)))
    return [part for part in parts if part.num_pixels]


def _lattice_px(areas: Sequence[Area]) -> int:
    pixels = sum(area.window.num_pixels for area in areas)
    return max(_MIN_LATTICE_PX, int(np.ceil(np.sqrt(pixels / _MAX_PLACES))))


def _places(target: NDArray[np.uint16], window: Window, area: int, lattice: int) -> NDArray[np.int64]:
    """`(place, 4)` of area, row, column, class at every `lattice`-th pixel that has a class."""
    rows, cols = np.nonzero(target[::lattice, ::lattice] != IGNORE)
    rows, cols = rows * lattice, cols * lattice
    columns = (np.full(len(rows), area), rows + window.row_off, cols + window.col_off, target[rows, cols])
    return np.stack(columns, axis=1).astype(np.int64)


def _require_classes(counts: NDArray[np.int64], unknown: int) -> None:
    if not counts.sum():
        raise InputError(
            f"none of the {unknown} pixels of the training part has both data and a label",
            code="TR-013",
            title="Nothing to learn from",
            where="split: train",
            fix="check the labels, the split and nodata with `scenemask inspect`",
        )
    if np.count_nonzero(counts) == 1:
        raise InputError(
            f"all {counts.sum()} labelled pixels of the training part are of one class (number {counts.argmax()})",
            code="TR-014",
            title="One class only",
            where="split: train",
            fix="label the background too: with polygons, `unlabelled: NAME` says what lies in none",
        )
