"""What a patch takes, in time and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ResourceError
from pipeline.run.room import LIBRARIES_BYTES
from pipeline.run.workers import memory_told, num_workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import SizeRule
    from pipeline.infer import Augmentation, Calibration
    from pipeline.model import Model, Traits
    from pipeline.run.choose import EngineChoice
    from pipeline.run.room import Room
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene

_WORKSPACE = 1.35
"""PyTorch's own buffers where a forward was not calibrated, as a factor on its live tensors."""
LEANEST = 0.35
"""Memory of the leanest engine (OpenVINO, bfloat16) over that of PyTorch's live tensors: 118 of 336 bytes per pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a patch takes, and what there is."""

    cost: Calibration | None
    """Measured time and memory of a forward."""
    budget_bytes: int
    """Of the device, without `fixed_bytes`. On a CPU the tiles in flight share it."""
    fixed_bytes: int
    """What the engine takes whatever the patch."""
    host_budget_bytes: int
    """For the tiles in flight, which lie in the host's memory; a device has its own for the forward."""
    forward_bytes_per_px: float
    """Of a patch: its forward, and what is done with the output."""
    read_bytes_per_px: float
    """The tiles in flight, of what is read for one: its halo too."""
    class_bytes_per_px: float
    """The tiles in flight, of one's core: all classes, where they are summed or kept."""
    halo_px: int
    """What is read around a core on each side."""
    on_host: bool
    """Whether forwards take the host's memory."""
    saved_bytes_per_px: float
    """For each output that is left out."""
    left_out_px: int
    """Outputs left out on each side."""
    most_px: float
    """Pixels of the largest patch that is any use, whatever the memory."""
    cores: int
    """Of a worker."""
    as_good: float
    """Time over the fastest's that a smaller patch may take."""
    engines: float = 1.0
    """That are made for this scene: one per worker, or fewer where they go on to other scenes."""

    def check_least_patch(self, traits: Traits, sizes: SizeRule, halo_px: int) -> None:
        """Is there room for any patch at all?

        Raises:
            ResourceError: RS-004 when not even the smallest useful patch fits.
        """
        least = _least_side(traits, sizes, halo_px)
        what, need = f"a patch of {least} px, the smallest that is any use, needs", int(self.nbytes((least, least)))
        if need > self.budget_bytes and not self.on_host:
            raise ResourceError(
                f"{what} {_gb(need + self.fixed_bytes)} GB of the GPU's memory; less is free",
                code="RS-004",
                title="Not enough memory",
                fix="close what else uses the GPU, or use --device cpu, --halo-tolerance 0.001 or --tiling blend",
            )
        if need > self.budget_bytes:
            raise too_little(what, need + self.fixed_bytes + LIBRARIES_BYTES["cpu"])
        tiles = int(self._tiles_nbytes((least, least)))
        if tiles > self.host_budget_bytes:
            raise too_little(what, tiles + LIBRARIES_BYTES["cpu" if self.on_host else "cuda"])

    @property
    def largest_px(self) -> int:
        """Pixels of the largest patch to be blended: where tiles share its memory, half of that is theirs."""
        forward = self.budget_bytes / 2 if self.on_host else self.budget_bytes
        return int(min(forward / self.forward_bytes_per_px, self.most_px))

    @property
    def widest_tile_px(self) -> int:
        """Side of the largest tile for which the other half suffices."""
        per_px = self.read_bytes_per_px + self.class_bytes_per_px
        return math.isqrt(max(0, int(self.host_budget_bytes / 2 / per_px)))

    def nbytes(self, patch_hw: tuple[Any, Any], read_hw: tuple[Any, Any] | None = None) -> Any:
        """Memory that a patch takes, of what `budget_bytes` is; of many patches, sides given as arrays.

        Args:
            patch_hw: Its height and width.
            read_hw: Those of what is read for a tile; the patch's own if not given.
        """
        saved = self.saved_bytes_per_px * count_left_out(patch_hw, self.left_out_px)
        tiles = self._tiles_nbytes(read_hw or patch_hw) if self.on_host else 0.0
        return math.prod(patch_hw) * self.forward_bytes_per_px - saved + tiles

    def fits(self, patch_hw: tuple[Any, Any], read_hw: tuple[Any, Any] | None = None) -> Any:
        """Whether there is memory for patches and tiles; arguments as `nbytes` has them."""
        tiles = self._tiles_nbytes(read_hw or patch_hw)
        return (self.nbytes(patch_hw, read_hw) <= self.budget_bytes) & (tiles <= self.host_budget_bytes)

    def _tiles_nbytes(self, read_hw: tuple[Any, Any]) -> Any:
        core = math.prod(np.maximum(side - 2 * self.halo_px, 0) for side in read_hw)
        return math.prod(read_hw) * self.read_bytes_per_px + core * self.class_bytes_per_px

    def seconds(self, patch_hw: tuple[Any, Any]) -> NDArray[np.float64]:
        """Time of a patch, or its pixels where it was not measured; infinite where memory does not suffice.

        Of many patches, where their heights and widths are given as arrays.
        """
        pixels = math.prod(patch_hw)
        left_out = count_left_out(patch_hw, self.left_out_px)
        taken = pixels if self.cost is None else self.cost.seconds(pixels, left_out=left_out)
        return np.where(self.fits(patch_hw) & (pixels <= self.most_px), taken, math.inf)

    def seconds_once(self, patch_hw: tuple[Any, Any]) -> Any:
        """Time that a patch of this size costs a whole run beside its forwards: engines get their memory.

        All workers together, as `seconds` counts; of many patches, where heights and widths are given as arrays.
        """
        per_px = 0.0 if self.cost is None else self.cost.first_s_per_px
        return self.engines * per_px * np.maximum(math.prod(patch_hw), _SMALL_PX)

    def seconds_beside(self, patch_hw: tuple[Any, Any]) -> Any:
        """Time that a tile takes from the forwards of others: none on a GPU, which goes on meanwhile."""
        if not self.on_host or self.cost is None:
            return 0.0
        return _BESIDE_S + _BESIDE_S_PER_PX / self.cores * math.prod(patch_hw)


_ALIKE = 1.01
"""Predicted times that differ by less are the same."""
_AS_GOOD = 1.05
"""Where nobody has said how much memory to use, and forwards share it with all else: whole runs of a U-Net in patches
of half the size took less than 2 % longer, and 20 % less memory. So peak memory hardly differs between scenes."""
_BESIDE_S = 0.005
"""For each tile beside its forward and whatever its size, of all cores: what Dask, the store and the ledger do. A scene
of 16384² px took 0.3 s longer in 128 tiles than in 64, 1.2 s in 256, with a network that computes next to nothing."""
_BESIDE_S_PER_PX = 6e-8
"""Of one core, for each pixel of a tile: it is read and decoded, its class stored. Most of the 22 seconds of processor
time that this scene took."""
_SMALL_PX = 2_000_000
"""No smaller patch is chosen to spare memory: what is done for each tile beside its forward would cost more."""


def demand_of(
    scene: Scene,
    model: Model,
    settings: SegmentSettings,
    engine: EngineChoice,
    cost: Calibration | None,
    room: Room,
    *,
    num_pixels: int | None = None,
    blend: bool = False,
    halo_px: int = 0,
) -> Demand:
    """What patches of this scene take with this engine, and what there is.

    Args:
        scene: To be computed.
        model: The model.
        settings: What was asked for.
        engine: What runs the network.
        cost: Of a forward, where it was measured.
        room: What a worker has.
        num_pixels: Of all scenes that the engines are made for; the scene's if not given.
        blend: Whether patches are averaged, all classes of them.
        halo_px: What a patch has around its core.
    """
    mask_bands = model.spec.legend().num_mask_bands
    device, fixed = engine.spec.device, 0 if cost is None else int(cost.fixed_bytes)
    classes = len(model.spec.classes)
    tile_bytes = tile_bytes_per_px(len(model.spec.bands), int(scene.dtype.itemsize), mask_bands)
    class_bytes = class_bytes_per_px(classes, blended=blend and device == "cpu", kept=settings.probabilities)
    forward = _bytes_per_px(engine, cost, model, settings.tta, all_classes=blend or settings.probabilities)
    return Demand(
        cost=cost,
        budget_bytes=room.forward_bytes - fixed,
        fixed_bytes=fixed,
        host_budget_bytes=room.host_bytes,
        forward_bytes_per_px=forward,
        read_bytes_per_px=room.in_flight * tile_bytes,
        class_bytes_per_px=room.in_flight * class_bytes,
        halo_px=halo_px,
        on_host=device == "cpu",
        saved_bytes_per_px=0.0 if cost is None else cost.saved_bytes_per_px,
        left_out_px=engine.spec.left_out_px,
        most_px=math.inf if device == "cpu" else _most_px_on_gpu(scene, model, room.in_flight),
        cores=engine.spec.threads,
        as_good=_AS_GOOD if device == "cpu" and not memory_told(settings) else _ALIKE,
        engines=num_workers(settings) * (1.0 if num_pixels is None else math.prod(scene.geobox.shape) / num_pixels),
    )


def _most_px_on_gpu(scene: Scene, model: Model, in_flight: int) -> float:
    """A GPU is busy with a patch of a few megapixels; larger ones wait longer to be read, and to be written.

    Beyond 2**31 elements in one tensor cuDNN has no kernels but the slowest: a hundred times slower on an H200.
    """
    traits = model.traits
    indexable = _MOST_ELEMENTS / max(traits.bytes_per_px / 4, 1.0)  # no tensor is larger than all that live at once
    overlapping = math.prod(scene.geobox.shape) / (_ROUNDS * in_flight)
    least = max(_LEAST_SIDE_ON_GPU, 2 * (traits.halo_px or 0) + traits.stride) ** 2
    return max(min(indexable, overlapping), least)


_MOST_ELEMENTS = 2**31 - 1
_ROUNDS = 3
"""Tiles of a worker over those in flight: filling and emptying the pipeline is then a small part of a run."""
_LEAST_SIDE_ON_GPU = 1024
"""From here on a larger patch is hardly faster: 243, 253, 253 Mpx/s at 1024, 2048, 4096 px on an H200, width 64."""


def count_left_out(patch_hw: tuple[Any, Any], left_out_px: int) -> Any:
    """Outputs of a patch that are left out."""
    return math.prod(patch_hw) - math.prod(side - 2 * left_out_px for side in patch_hw)


def tile_bytes_per_px(bands: int, itemsize_bytes: int, mask_bands: int = 1) -> int:
    """Bytes per pixel of a tile in flight: values, again where PyTorch cannot use them as they lie, validity, mask."""
    return bands * (2 * itemsize_bytes + 1) + 2 + mask_bands


def class_bytes_per_px(num_classes: int, *, blended: bool, kept: bool) -> int:
    """Bytes per pixel of a tile's core for all classes: float32 where they are summed or kept.

    Kept ones take a byte more as they are stored, and another one as a part of their shard.
    """
    sums = 4 * (num_classes + 1) if blended else 4 * num_classes if kept else 0
    return sums + (2 * num_classes if kept else 0)


def _bytes_per_px(
    engine: EngineChoice, cost: Calibration | None, model: Model, tta: Augmentation, *, all_classes: bool
) -> float:
    """Per pixel of a patch: scaled input, forward, and the copies that activation and weighting make of its output.

    On a CPU the next patch's input is made meanwhile.
    """
    classes = len(model.spec.classes)
    after = classes * 4 * 3 + 8 if engine.spec.backend == "torch" else 0
    measured = cost.bytes_per_px if cost else model.traits.bytes_per_px * _WORKSPACE
    averages = tta != "none"
    averaging = 8 * classes + 4 * len(model.spec.bands) if averages else 0  # what was turned back, and the sum
    # What was measured puts out labels where it can. All classes are one output more, which OpenVINO holds twice, and
    # their activation, of strips where they are averaged.
    apart = 0
    if engine.spec.backend != "torch" and (all_classes or averages):
        apart = (8 if averages else 12) * classes
    inputs = 4 * len(model.spec.bands) * (2 if engine.spec.device == "cpu" else 1)
    return max(measured, after) + averaging + apart + inputs


def check_leanest_patch(budget_bytes: int, traits: Traits, sizes: SizeRule) -> None:
    """Could there be room for any patch? Asked before anything is measured.

    Args:
        budget_bytes: For a forward.
        traits: Of the network.
        sizes: Sides that it takes.

    Raises:
        ResourceError: RS-004 when not even the smallest useful patch fits, with the leanest engine there is.
    """
    least = _least_side(traits, sizes, traits.halo_px or 0)
    need = int(least * least * traits.bytes_per_px * LEANEST)
    if need > budget_bytes:
        what = f"a patch of {least} px, the smallest that is any use, needs at least"
        raise too_little(what, need + LIBRARIES_BYTES["cpu"])


def _least_side(traits: Traits, sizes: SizeRule, halo_px: int) -> int:
    return sizes.at_least(2 * halo_px + max(traits.stride, 2 * traits.margin_px, 16))


def too_little(what: str, need: int) -> ResourceError:
    """RS-004: `what` needs so many bytes."""
    return ResourceError(
        f"{what} {_gb(need)} GB; less is available",
        code="RS-004",
        title="Not enough memory",
        fix=f"give --memory {_gb(need)}GB, close other programs, or use --halo-tolerance 0.001 or --tiling blend",
    )


def _gb(nbytes: int) -> str:
    """Rounded up: asked for, it must do."""
    return f"{math.ceil(nbytes / 1e8) / 10:.1f}"
