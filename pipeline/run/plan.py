"""Everything that `auto` means, resolved once by the client and frozen: workers never decide again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.grid import Padding, Tiling
from pipeline.infer import Augmentation, Batching, Taper, symmetries
from pipeline.model import EngineSpec
from pipeline.run.basis import Basis, find_basis
from pipeline.run.block_cache import choose_block_cache, extra_cache_bytes
from pipeline.run.demand import (
    class_bytes_per_px,
    count_left_out,
    demand_of,
    tile_bytes_per_px,
    too_little,
)
from pipeline.run.room import LIBRARIES_BYTES
from pipeline.run.tilings import lay_blend, lay_exact, patch_sizes
from pipeline.run.workers import reads_in_order
from pipeline.scene import BLOCK_CACHE_BYTES

if TYPE_CHECKING:
    from pipeline.model import Model
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene


_MANY_FLIPS = 0.005
"""Share of sampled pixels whose class differs from float32, above which a precision that was asked for is warned of."""
_MANY_TIMES = 8
"""That each pixel is computed, above which more memory is worth asking for."""
_FEW_PATCHES = 4
"""A small scene has no more, and is soon done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run does, to the last decision; kept as `.scenemask/plan.json`."""

    tiling: Tiling
    """Patches and tiles."""
    reason: str
    """Why exact, or why blend."""
    padding: Padding
    """How the scene is extended beyond its rim."""
    taper: Taper
    """Weights of blend mode."""
    tta: Augmentation
    """Images of each patch that are averaged."""
    engine: EngineSpec
    """Library, device, precision and threads of the forward."""
    engine_reason: str
    """Why this library, and why this precision."""
    flips_frac: float | None
    """Share of sampled pixels whose class differs from float32; None where it was not measured."""
    batch: int
    """Patches per forward; more than one where a GPU blends patches that are too small for it."""
    in_flight: int
    """Tiles that a worker holds at a time."""
    decoding_threads: int
    """Threads of a worker that decode one window of the scene."""
    block_cache_bytes: int
    """Bytes of decoded blocks that a worker keeps."""
    probabilities: bool
    """Whether probabilities are kept."""
    num_classes: int
    """Classes of the model."""
    mask_bands: int
    """Bands of the mask: one, or one per class where classes overlap."""
    bands: int
    """Bands read."""
    itemsize_bytes: int
    """Bytes of a stored value."""
    fixed_bytes: int
    """Memory that the engine takes whatever the patch."""
    bytes_per_px: float
    """Memory of a forward and of what is done with its output, per pixel of a patch."""
    saved_bytes_per_px: float
    """Memory that an output left out saves."""
    forward_s: float | None
    """Predicted seconds of a patch in one forward; None where it was not measured. A patch takes `forwards_per_patch`
    of them."""

    @property
    def digest(self) -> str:
        """Identity of the plan, hex: every tile's record carries it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def forwards_per_patch(self) -> int:
        """More than one with test-time augmentation."""
        return len(symmetries(self.tta))

    @property
    def classes_alone(self) -> bool:
        """Whether an engine may decide by itself and keep its outputs: memory for all of them is not counted then."""
        averaged = self.tiling.mode == "blend" or self.tta != "none"
        return self.engine.backend != "torch" and not (averaged or self.probabilities)

    @property
    def forward_bytes(self) -> int:
        """Predicted peak of one forward and of what is done with its output."""
        left_out = count_left_out(self.tiling.patch_hw, self.tiling.rows.margin) if self.engine.trim_px else 0
        saved = left_out * self.saved_bytes_per_px
        pixels = self.batch * math.prod(self.tiling.patch_hw)
        return int(self.fixed_bytes + pixels * self.bytes_per_px - saved)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak resident memory of a worker."""
        blends, host = self.tiling.mode == "blend", self.engine.device == "cpu"
        rim = 2 * self.tiling.halo_px + (self.tiling.rows.patch if blends else 0)
        core = [min(side, n) for side, n in zip(self.tiling.tile_hw, self.tiling.shape, strict=True)]
        read = math.prod(side + rim for side in core)
        tile = read * tile_bytes_per_px(self.bands, self.itemsize_bytes, self.mask_bands)
        tile += math.prod(core) * class_bytes_per_px(self.num_classes, blended=blends and host, kept=self.probabilities)
        forward = self.forward_bytes if host else 0
        cache = extra_cache_bytes(self.block_cache_bytes)
        return int(LIBRARIES_BYTES[self.engine.device] + forward + self.in_flight * tile + cache)

    @property
    def infer_s(self) -> float | None:
        """Predicted seconds of all forwards on one worker."""
        if self.forward_s is None:
            return None
        patches = self.tiling.redundancy() * math.prod(self.tiling.shape) / math.prod(self.tiling.patch_hw)
        return self.forward_s * self.forwards_per_patch * patches

    @property
    def scratch_bytes(self) -> int:
        """Disk for the store, at worst: incompressible masks and probabilities."""
        pixels = math.prod(self.tiling.shape)
        mask_bytes = self.mask_bands * (1 if self.mask_bands > 1 or self.num_classes <= 255 else 2)  # noqa: PLR2004
        return pixels * (mask_bytes + (self.num_classes if self.probabilities else 0))

    @property
    def warnings(self) -> list[str]:
        """What a person should know before trusting the result, or waiting for it."""
        warnings = []
        if self.engine.precision != "float32" and (self.flips_frac or 0.0) > _MANY_FLIPS:
            warnings.append(
                f"{self.engine.precision} changes the class of {self.flips_frac:.2%} of sampled pixels; "
                "--precision float32 is the reference"
            )
        times = self.tiling.redundancy()
        if self.tiling.mode == "exact" and times > _MANY_TIMES and self.tiling.num_patches > _FEW_PATCHES:
            height, width = self.tiling.patch_hw
            warnings.append(
                f"each pixel is computed {times:.0f} times: the network sees {self.tiling.halo_px} px beyond it, and "
                f"patches have {height} x {width} px; give more --memory, a larger --patch, or --halo-tolerance 0.001"
            )
        return warnings

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**dataclasses.asdict(self), "engine": self.engine.model_dump()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """The plan that `to_json` gave."""
        tiling = Tiling.from_json(document["tiling"])
        engine = EngineSpec.model_validate(document["engine"])
        return cls(**{**document, "tiling": tiling, "engine": engine})

    def summary(self) -> dict[str, Any]:
        """Numbers for people: `scenemask plan`."""
        tiling = self.tiling
        return {
            "tiling": tiling.mode,
            "reason": self.reason,
            "halo_px": tiling.halo_px,
            "left_out_px": self.engine.left_out_px,
            "overlap_px": tiling.overlap_px,
            "output_stride": tiling.stride,
            "patch_px": list(tiling.patch_hw),
            "core_px": [tiling.rows.step, tiling.cols.step],
            "tile_px": list(tiling.tile_hw),
            "tiles": tiling.num_tiles,
            "patches": tiling.num_patches,
            "redundancy": round(tiling.redundancy(), 3),
            "batch": self.batch,
            "tiles_in_flight": self.in_flight,
            "block_cache_bytes": self.block_cache_bytes,
            "tta": self.tta,
            "forwards_per_patch": self.forwards_per_patch,
            "padding": self.padding,
            "device": self.engine.device,
            "backend": self.engine.backend,
            "precision": self.engine.precision,
            "engine_reason": self.engine_reason,
            "flips_frac": self.flips_frac,
            "threads": self.engine.threads,
            "forward_s": None if self.infer_s is None else round(self.infer_s, 1),
            "peak_memory_bytes": self.peak_bytes,
            "device_memory_bytes": None if self.engine.device == "cpu" else self.forward_bytes,
            "scratch_bytes": self.scratch_bytes,
        }


def make_plan(scene: Scene, model: Model, settings: SegmentSettings) -> Plan:
    """Resolve every `auto` for one scene and one model, on this machine.

    Raises:
        UsageError: CF-006 when options do not fit the network; CF-020 when CUDA is asked for and there is none.
        ModelError: MD-011 when exact tiling is asked of a network that does not allow it.
        ResourceError: RS-004 when no patch fits the memory.
    """
    return plan_from(scene, model, settings, find_basis(scene, model, settings))


def plan_from(scene: Scene, model: Model, settings: SegmentSettings, basis: Basis) -> Plan:
    """The plan of one scene, on a basis that may come from another machine: arithmetic only.

    Raises:
        UsageError: CF-006 when options do not fit the network.
        ResourceError: RS-004 when no patch fits the memory.
    """
    traits, engine, cost = model.traits, basis.engine, basis.cost
    sizes = patch_sizes(traits, settings.tta)
    demand = demand_of(
        scene,
        model,
        settings,
        engine,
        cost,
        basis.room,
        num_pixels=basis.num_pixels,
        blend=basis.mode == "blend",
        halo_px=basis.halo_px if basis.mode == "exact" else 0,
    )
    demand.check_least_patch(traits, sizes, basis.halo_px)
    network_padding = basis.padding == "network"
    if basis.mode == "exact":
        tiling = lay_exact(scene.geobox.shape, model, settings, demand, network_padding=network_padding)
    else:
        tiling = lay_blend(scene.geobox.shape, settings, traits, demand)
    batching = basis.batching or Batching(1, None if cost is None else float(demand.seconds(tiling.patch_hw)))
    need = int(demand.nbytes(tiling.patch_hw))
    if settings.memory is not None and demand.on_host and need > demand.budget_bytes:  # only --patch can ask for more
        need = int(settings.memory - demand.budget_bytes + need)
        raise too_little(f"patches of {tiling.patch_hw[0]} x {tiling.patch_hw[1]} px need", need)
    plan = Plan(
        tiling=tiling,
        reason=basis.reason,
        padding=basis.padding,
        taper=settings.taper,
        tta=settings.tta,
        engine=engine.spec,
        engine_reason=engine.reason,
        flips_frac=engine.flips_frac,
        batch=batching.batch,
        in_flight=basis.room.in_flight,
        decoding_threads=basis.room.decoding_threads,
        block_cache_bytes=BLOCK_CACHE_BYTES,
        probabilities=settings.probabilities,
        num_classes=len(model.spec.classes),
        mask_bands=model.spec.legend().num_mask_bands,
        bands=len(model.spec.bands),
        itemsize_bytes=int(scene.dtype.itemsize),
        fixed_bytes=0 if cost is None else int(cost.fixed_bytes),
        bytes_per_px=demand.forward_bytes_per_px,
        saved_bytes_per_px=demand.saved_bytes_per_px,
        forward_s=batching.seconds,
    )
    if not reads_in_order(settings, engine.spec.device):
        return plan
    spare = min(demand.budget_bytes - need, basis.room.host_bytes + LIBRARIES_BYTES["cpu"] - plan.peak_bytes)
    cache = choose_block_cache(scene, tiling, padding=basis.padding, spare_bytes=spare)
    return dataclasses.replace(plan, block_cache_bytes=cache)
