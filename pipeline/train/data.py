"""A labelled scene as the network sees it: means of squares of pixels, standardised, with the target beside them.

Blocks are read once and kept while there is room: chips overlap and are drawn again and again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from pipeline.errors import InputError
from pipeline.grid import GeoBox, Window
from pipeline.scene import open_scene
from pipeline.train.target import IGNORE, open_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.scene import Scene
    from pipeline.train.settings import LabelledScene, TrainSettings
    from pipeline.train.target import Target

_BLOCK_PX = 256
_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Pixels of a window in the network's pixels, with what is known about them."""

    data: NDArray[np.float32]
    """`(band, y, x)` stored values, means over valid pixels; 0 where there are none."""
    valid: NDArray[np.bool_]
    """`(band, y, x)`."""
    target: NDArray[np.uint16]
    """`(y, x)` class values; `IGNORE` where nothing is known or a band has no data."""

    def crop(self, rows: slice, cols: slice) -> Sample:
        """A part of it."""
        return Sample(self.data[:, rows, cols], self.valid[:, rows, cols], self.target[rows, cols])


class BlockCache:
    """Samples by scene and place, least recently used out first; bounded in bytes."""

    def __init__(self, limit_bytes: int = _CACHE_BYTES) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._blocks: OrderedDict[Any, Sample] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any) -> Sample | None:
        """The sample, if it is still there."""
        with self._lock:
            found = self._blocks.get(key)
            if found is not None:
                self._blocks.move_to_end(key)
            return found

    def put(self, key: Any, sample: Sample) -> None:
        """Keep a sample for as long as there is room."""
        with self._lock:
            if key in self._blocks:
                return
            self._blocks[key] = sample
            self._bytes += _bytes(sample)
            while self._bytes > self._limit and len(self._blocks) > 1:
                self._bytes -= _bytes(self._blocks.popitem(last=False)[1])


@dataclass(frozen=True, slots=True, eq=False)
class LabelledView:
    """A scene and its target on the network's grid."""

    name: str
    scene: Scene
    target: Target
    factor: int
    """Pixels of the scene along a side of one of the network's."""
    cache: BlockCache = field(default_factory=BlockCache)

    @property
    def geobox(self) -> GeoBox:
        """The network's grid; what is left at the right and bottom is less than one of its pixels."""
        box = self.scene.geobox
        shape = (box.height // self.factor, box.width // self.factor)
        return GeoBox(shape=shape, transform=box.transform @ Affine.scale(self.factor), crs_wkt=box.crs_wkt)

    @property
    def whole(self) -> Window:
        """All of it."""
        height, width = self.geobox.shape
        return Window(row_off=0, col_off=0, height=height, width=width)

    def read(self, window: Window, *, inside: Window | None = None) -> Sample:
        """A sample; what lies outside the scene, or outside `inside`, is not valid and not known."""
        allowed = self.whole if inside is None else self.whole.intersect(inside)
        bands = len(self.scene.bands)
        data = np.zeros((bands, *window.shape), np.float32)
        valid = np.zeros((bands, *window.shape), bool)
        target = np.full(window.shape, IGNORE, np.uint16)
        common = window.intersect(allowed)
        for row in range(common.row_off // _BLOCK_PX, -(-common.row_stop // _BLOCK_PX)):
            for col in range(common.col_off // _BLOCK_PX, -(-common.col_stop // _BLOCK_PX)):
                block = Window(
                    row_off=row * _BLOCK_PX, col_off=col * _BLOCK_PX, height=_BLOCK_PX, width=_BLOCK_PX
                ).intersect(self.whole)
                part = common.intersect(block)
                if not part.num_pixels:
                    continue
                found = self._block(block).crop(*part.slices_in(block))
                rows, cols = part.slices_in(window)
                data[:, rows, cols], valid[:, rows, cols] = found.data, found.valid
                target[rows, cols] = found.target
        return Sample(data, valid, target)

    def _block(self, block: Window) -> Sample:
        key = (id(self), block)
        found = self.cache.get(key)
        if found is None:
            found = self._read_block(block)
            self.cache.put(key, found)
        return found

    def _read_block(self, block: Window) -> Sample:
        n = self.factor
        fine = Window(
            row_off=block.row_off * n, col_off=block.col_off * n, height=block.height * n, width=block.width * n
        )
        pixels = self.scene.read_block(fine)
        data, valid = _coarser(pixels.data, pixels.valid, n)
        target = _majority(self.target.read(fine), n)
        target[~valid.all(axis=0)] = IGNORE
        return Sample(data, valid, target)


def open_views(settings: TrainSettings) -> list[LabelledView]:
    """The labelled scenes, with the same bands in the same order.

    Raises:
        InputError: A scene or its labels cannot be used (IN-, TR-001 to TR-004); TR-006 their bands differ.
        UsageError: TR-005.
    """
    cache = BlockCache()
    scenes = [_open(labelled, settings.bands) for labelled in settings.scenes]
    _require_same_bands(scenes, settings.scenes)
    return [
        LabelledView(
            name=scene.name,
            scene=scene,
            target=open_target(labelled, scene.geobox, settings.legend),
            factor=settings.downsample,
            cache=cache,
        )
        for scene, labelled in zip(scenes, settings.scenes, strict=True)
    ]


def _open(labelled: LabelledScene, bands: tuple[str, ...] | None) -> Scene:
    wanted = labelled.bands or bands
    return open_scene(
        labelled.scene,
        bands=None if wanted is None else [int(b) if b.isdecimal() else b for b in wanted],
        nodata=labelled.nodata,
        assume_crs=labelled.assume_crs,
        allow_no_crs=labelled.allow_no_crs,
    )


def _require_same_bands(scenes: Sequence[Scene], labelled: Sequence[LabelledScene]) -> None:
    first = scenes[0]
    for scene, given in zip(scenes, labelled, strict=True):
        same_count = len(scene.bands) == len(first.bands)
        named = all(b.described for b in (*scene.bands, *first.bands)) and given.bands is None
        if same_count and not (named and [b.name for b in scene.bands] != [b.name for b in first.bands]):
            continue
        raise InputError(
            f"{scene.name} has the bands {', '.join(b.name for b in scene.bands)}, "
            f"{first.name} has {', '.join(b.name for b in first.bands)}",
            code="TR-006",
            title="Scenes with different bands",
            where=str(given.scene),
            fix="name the bands of all scenes with `bands`, or those of one scene with its own `bands`",
        )


def _coarser(data: NDArray[Any], valid: NDArray[np.bool_], n: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Means over the valid pixels of n x n squares; a square without any is not valid."""
    values = np.where(valid, data, 0).astype(np.float32)
    if n == 1:
        return values, np.ascontiguousarray(valid)
    bands, height, width = data.shape
    squares = (bands, height // n, n, width // n, n)
    total = values.reshape(squares).sum(axis=(2, 4), dtype=np.float32)
    count = valid.reshape(squares).sum(axis=(2, 4), dtype=np.float32)
    return total / np.maximum(count, 1), count > 0


def _majority(target: NDArray[np.uint16], n: int) -> NDArray[np.uint16]:
    """The commonest class of n x n squares; of equally common ones the lowest, and `IGNORE` last."""
    if n == 1:
        return target
    height, width = target.shape
    squares = target.reshape(height // n, n, width // n, n)
    values = np.unique(target)  # ascending, so that argmax takes the lowest
    counts = np.stack([(squares == value).sum(axis=(1, 3), dtype=np.uint16) for value in values])
    return np.asarray(values[counts.argmax(axis=0)], np.uint16)


def _bytes(sample: Sample) -> int:
    return sample.data.nbytes + sample.valid.nbytes + sample.target.nbytes
