"""Everything that `auto` means, resolved once by the client and frozen: workers never decide again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError, UsageError
from pipeline.grid import Axis, Padding, Tiling, balanced_core, blend_tiling, exact_tiling, round_up
from pipeline.infer import Augmentation, Batching, Taper, choose_batch, device_thread, resolve_device, symmetries
from pipeline.model import EngineSpec
from pipeline.run.choose import EngineChoice, choose_engine, measured_cost, trim_to_halo
from pipeline.run.demand import (
    LEANEST,
    LIBRARIES_BYTES,
    Demand,
    check_least_patch,
    count_left_out,
    demand_of,
    forward_budget,
    tile_bytes_per_px,
    too_little,
)
from pipeline.run.halo import tolerated_halo
from pipeline.run.workers import decoding_threads, device_wanted, tiles_in_flight

if TYPE_CHECKING:
    from pipeline.grid import SizeRule
    from pipeline.model import Model, Traits
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene

_BLEND_PATCH = 512


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
    def forward_bytes(self) -> int:
        """Predicted peak of one forward and of what is done with its output."""
        left_out = count_left_out(self.tiling.patch_hw, self.tiling.rows.margin) if self.engine.trim_px else 0
        saved = left_out * self.saved_bytes_per_px
        pixels = self.batch * math.prod(self.tiling.patch_hw)
        return int(self.fixed_bytes + pixels * self.bytes_per_px - saved)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak resident memory of a worker."""
        rim = 2 * self.tiling.halo_px + (self.tiling.rows.patch if self.tiling.mode == "blend" else 0)
        sides = [min(side, n) + rim for side, n in zip(self.tiling.tile_hw, self.tiling.shape, strict=True)]
        blended = 4 * (self.num_classes + 1) if self.tiling.mode == "blend" or self.probabilities else 0
        per_px = tile_bytes_per_px(self.bands, self.itemsize_bytes, self.mask_bands) + blended
        forward = self.forward_bytes if self.engine.device == "cpu" else 0
        return int(LIBRARIES_BYTES[self.engine.device] + forward + self.in_flight * math.prod(sides) * per_px)

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

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**dataclasses.asdict(self), "engine": self.engine.model_dump()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """The plan that `to_json` gave."""
        tiling = dict(document["tiling"])
        tiling["shape"] = tuple(tiling["shape"])
        tiling["rows"], tiling["cols"] = Axis(**tiling["rows"]), Axis(**tiling["cols"])
        engine = EngineSpec.model_validate(document["engine"])
        return cls(**{**document, "tiling": Tiling(**tiling), "engine": engine})

    def summary(self) -> dict[str, Any]:
        """Numbers for people: `scenemask plan`."""
        tiling = self.tiling
        return {
            "tiling": tiling.mode,
            "reason": self.reason,
            "halo_px": tiling.halo_px,
            "overlap_px": tiling.overlap_px,
            "output_stride": tiling.stride,
            "patch_px": list(tiling.patch_hw),
            "core_px": [tiling.rows.step, tiling.cols.step],
            "tile_px": list(tiling.tile_hw),
            "tiles": len(tiling.tiles()),
            "patches": tiling.num_patches,
            "redundancy": round(tiling.redundancy(), 3),
            "batch": self.batch,
            "tiles_in_flight": self.in_flight,
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
    """Resolve every `auto` for one scene and one model.

    Raises:
        UsageError: CF-006 when options do not fit the network; CF-020 when CUDA is asked for and there is none.
        ModelError: MD-011 when exact tiling is asked of a network that does not allow it.
        ResourceError: RS-004 when no patch fits the memory.
    """
    traits = model.traits
    mode, reason = _mode(traits, settings)
    padding: Padding = model.spec.padding if settings.padding == "auto" else settings.padding
    _check_padding(padding, traits, mode)
    device = resolve_device(device_wanted(settings))
    sizes = patch_sizes(traits, settings.tta)
    if mode == "exact" and settings.halo_tolerance is None:  # before anything is measured that would not fit either
        check_least_patch(
            forward_budget(settings, device), traits.bytes_per_px * LEANEST, traits, sizes, traits.halo_px or 0
        )
    engine = choose_engine(scene, model, settings, device=device, one_size=padding != "network")
    halo, reason = _halo(scene, model, settings, engine, mode, reason)
    if mode == "exact":
        engine = trim_to_halo(engine, model, halo)
    cost = measured_cost(engine, model, budget_bytes=forward_budget(settings, device))
    demand = demand_of(scene, model, settings, engine, cost)
    check_least_patch(demand.budget_bytes, demand.bytes_per_px - demand.saved_bytes_per_px, traits, sizes, halo)
    if mode == "exact":
        tiling = _exact(scene.geobox.shape, model, settings, demand, halo=halo, network_padding=padding == "network")
    else:
        tiling = _blend(scene.geobox.shape, settings, traits, demand.largest_px)
    batching = Batching(1, None if cost is None else float(demand.seconds(tiling.patch_hw)))
    if mode == "blend" and device == "cuda":
        fitting = demand.largest_px // math.prod(tiling.patch_hw)
        thread = device_thread(threads=engine.spec.threads)
        batching = choose_batch(model, engine.spec, thread, tiling.patch_hw, largest=fitting)
    need = int(demand.nbytes(tiling.patch_hw))
    if settings.memory is not None and demand.on_host and need > demand.budget_bytes:  # only --patch can ask for more
        need = int(settings.memory - demand.budget_bytes + need)
        raise too_little(f"patches of {tiling.patch_hw[0]} x {tiling.patch_hw[1]} px need {need / 1e9:.1f} GB", need)
    return Plan(
        tiling=tiling,
        reason=reason,
        padding=padding,
        taper=settings.taper,
        tta=settings.tta,
        engine=engine.spec,
        engine_reason=engine.reason,
        flips_frac=engine.flips_frac,
        batch=batching.batch,
        in_flight=tiles_in_flight(settings, device),
        decoding_threads=decoding_threads(settings, device),
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


def _mode(traits: Traits, settings: SegmentSettings) -> tuple[str, str]:
    if settings.tiling == "blend":
        return "blend", "asked for with --tiling blend"
    if settings.tiling == "exact":
        if traits.tiling != "exact":
            raise ModelError(
                f"--tiling exact was asked for, but {traits.reason}",
                code="MD-011",
                title="Network cannot be tiled exactly",
                fix="use --tiling auto or blend",
            )
        return "exact", f"asked for; {traits.reason}"
    if settings.overlap is not None:
        _check_overlap(settings.overlap, traits)
        return "blend", "--overlap was given; exact mode takes none"
    return traits.tiling, traits.reason


def _check_overlap(overlap_px: int, traits: Traits) -> None:
    """Refuse to blend without need, and with seams, a network that can be tiled exactly; `--tiling blend` insists."""
    if traits.tiling == "exact" and traits.halo_px is not None and overlap_px < 2 * traits.halo_px:
        raise _misfit(
            f"--overlap {overlap_px} is less than twice the {traits.halo_px} px that the network sees beyond a pixel: "
            "seams would show",
            "leave --overlap out: exact tiling has no seams; or insist with --tiling blend",
        )


def _check_padding(padding: Padding, traits: Traits, mode: str) -> None:
    if padding == "network" and (traits.margin_px or mode == "blend"):
        why = "drops its borders instead of padding them" if traits.margin_px else "is tiled by blending"
        raise _misfit(
            f"--padding network needs a network that pads itself and exact tiling; this one {why}",
            "use --padding reflect",
        )


def _halo(
    scene: Scene, model: Model, settings: SegmentSettings, engine: EngineChoice, mode: str, reason: str
) -> tuple[int, str]:
    """(halo, reason): the network's own, or a smaller one that the user's tolerance allows; 0 in blend mode."""
    whole = (model.traits.halo_px or 0) if mode == "exact" else 0
    if settings.halo_tolerance is None:
        return whole, reason
    if mode != "exact":
        raise _misfit(
            f"--halo-tolerance was given, but the scene is tiled by blending: {reason}",
            "leave it out, or choose --overlap",
        )
    thread = device_thread(threads=engine.spec.threads)
    halo, error = tolerated_halo(scene, model, engine.spec, thread, tolerance=settings.halo_tolerance)
    if halo == whole:
        return whole, f"{reason}; no smaller halo keeps within {settings.halo_tolerance:g}"
    return halo, f"{reason}; {halo} px of them change probabilities by at most {error:.1e} in sampled windows"


def _exact(
    shape: tuple[int, int],
    model: Model,
    settings: SegmentSettings,
    demand: Demand,
    *,
    halo: int,
    network_padding: bool,
) -> Tiling:
    """Patches from --patch where given, else the fastest that memory allows, in equal parts."""
    traits = model.traits
    stride, sizes = traits.stride, patch_sizes(traits, settings.tta)
    square = needs_squares(settings.tta, network_padding=network_padding)
    if settings.patch is not None:
        core = (settings.patch - 2 * halo) // stride * stride
        if core < stride:
            raise _misfit(
                f"--patch {settings.patch} leaves no core: the network needs a halo of {halo} px on each side",
                f"use a patch of at least {round_up(2 * halo + 128, stride)} px",
            )
        core_hw = core, core
    else:
        core_hw = balanced_core(
            shape,
            halo_px=halo,
            stride=stride,
            sizes=sizes,
            seconds=demand.seconds,
            square=square,
        )
    return exact_tiling(
        shape,
        core_hw=core_hw,
        halo_px=halo,
        stride=stride,
        margin_px=traits.margin_px or demand.left_out_px,
        sizes=sizes,
        tile_px=settings.tile,
        network_padding=network_padding,
        square=square,
    )


def _blend(shape: tuple[int, int], settings: SegmentSettings, traits: Traits, largest_px: int) -> Tiling:
    sizes = patch_sizes(traits, settings.tta)
    patch = settings.patch or min(_BLEND_PATCH, sizes.at_most(math.isqrt(largest_px)) or sizes.at_least(1))
    try:
        return blend_tiling(
            shape,
            patch_px=patch,
            overlap_px=settings.overlap if settings.overlap is not None else patch // 4,
            stride=traits.stride,
            margin_px=traits.margin_px,
            sizes=sizes,
            tile_px=settings.tile,
            square=needs_squares(settings.tta, network_padding=False),
        )
    except ValueError as error:
        raise _misfit(str(error), "choose a smaller --overlap or a larger --patch") from error


def patch_sizes(traits: Traits, tta: Augmentation) -> SizeRule:
    """Sides of patches that the network takes and that flips map onto the same lattice of strides."""
    return traits.sizes if tta == "none" else traits.sizes.on_stride(traits.stride)


def needs_squares(tta: Augmentation, *, network_padding: bool) -> bool:
    """Whether one size must fit a patch and its transpose; with network padding engines take any size."""
    return tta == "d4" and not network_padding


def _misfit(what: str, fix: str) -> UsageError:
    return UsageError(what, code="CF-006", title="Options do not fit the network", fix=fix)
