"""What is decided once for a model, its settings and a kind of machine, before any scene is tiled: engine, halo, room.

Decided where the work will be done. The scenes of a batch share it, so that an archive is computed in one way.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import ModelError, ResourceError
from pipeline.infer import Batching, Calibration, choose_batch, device_thread, resolve_device
from pipeline.model import EngineSpec
from pipeline.run.choose import EngineChoice, choose_engine, measured_cost, trim_to_halo
from pipeline.run.demand import LEANEST, check_least_patch, demand_of
from pipeline.run.halo import tolerated_halo
from pipeline.run.room import Room, rooms_of
from pipeline.run.tilings import lay_blend, lay_exact, misfit, patch_sizes
from pipeline.run.workers import device_wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.grid import Padding
    from pipeline.model import Model, Traits
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What plans of one model and one kind of machine have in common."""

    mode: str
    """`exact` or `blend`."""
    reason: str
    """Why."""
    halo_px: int
    """0 in blend mode."""
    padding: Padding
    """How scenes are extended beyond their rim."""
    engine: EngineChoice
    """What runs the network."""
    cost: Calibration | None
    """Measured time and memory of a forward."""
    room: Room
    """What a worker has."""
    batching: Batching | None
    """Patches per forward, where that was measured."""
    num_pixels: int | None
    """Of all scenes that are computed with it; None where only one is."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "engine": {**dataclasses.asdict(self.engine), "spec": self.engine.spec.model_dump()},
            "cost": None if self.cost is None else self.cost.model_dump(),
            "room": dataclasses.asdict(self.room),
            "batching": None if self.batching is None else list(self.batching),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """The basis that `to_json` gave."""
        engine = {**document["engine"], "spec": EngineSpec.model_validate(document["engine"]["spec"])}
        return cls(
            **{
                **document,
                "engine": EngineChoice(**engine),
                "cost": None if document["cost"] is None else Calibration.model_validate(document["cost"]),
                "room": Room(**document["room"]),
                "batching": None if document["batching"] is None else Batching(*document["batching"]),
            }
        )


def find_basis(scene: Scene, model: Model, settings: SegmentSettings, *, num_pixels: int | None = None) -> Basis:
    """Decide what does not depend on a scene's shape; on this machine.

    Args:
        scene: Where windows are sampled.
        model: The model.
        settings: What was asked for.
        num_pixels: Of all that is to be computed, which says whether measuring pays; the scene's if not given.

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
    rooms = rooms_of(settings, device)
    room = rooms[0]
    if mode == "exact" and settings.halo_tolerance is None:  # before anything is measured that would not fit either
        sizes = patch_sizes(traits, settings.tta)
        check_least_patch(rooms[-1].forward_bytes, traits.bytes_per_px * LEANEST, traits, sizes, traits.halo_px or 0)
    work = math.prod(scene.geobox.shape) if num_pixels is None else num_pixels
    engine = choose_engine(scene, model, settings, device=device, one_size=padding != "network", num_pixels=work)
    halo, reason = _halo(scene, model, settings, engine, mode, reason)
    if mode == "exact":
        engine = trim_to_halo(engine, model, halo, budget_bytes=room.forward_bytes)
    cost = measured_cost(engine, model, budget_bytes=room.forward_bytes, most_bytes=rooms[-1].forward_bytes)
    batching = None
    if mode == "blend" and device == "cuda":
        demand = demand_of(scene, model, settings, engine, cost, room)
        patch_hw = lay_blend(scene.geobox.shape, settings, traits, demand.largest_px).patch_hw
        fitting = demand.largest_px // math.prod(patch_hw)
        batching = choose_batch(
            model, engine.spec, device_thread(threads=engine.spec.threads), patch_hw, largest=fitting
        )
    basis = Basis(
        mode=mode,
        reason=reason,
        halo_px=halo,
        padding=padding,
        engine=engine,
        cost=cost,
        room=room,
        batching=batching,
        num_pixels=num_pixels,
    )
    bases = [dataclasses.replace(basis, room=one) for one in rooms]
    return one_that_pays(bases, [_seconds(scene, model, settings, one) for one in bases])


def one_that_pays(bases: Sequence[Basis], seconds: Sequence[float]) -> Basis:
    """The one with the least room from which more does not pay: small patches compute a wide halo again and again.

    More room pays where it makes time shrink by at least the square root of what it grows by.

    Args:
        bases: With more room each.
        seconds: That each would take; infinite where no patch fits.
    """
    best, least = bases[0], seconds[0]
    for one, taken in zip(bases[1:], seconds[1:], strict=True):
        if taken <= least * math.sqrt(best.room.host_bytes / one.room.host_bytes):
            best, least = one, taken
    return best


def _seconds(scene: Scene, model: Model, settings: SegmentSettings, basis: Basis) -> float:
    """Predicted time of all forwards over the scene, or their pixels where they were not measured."""
    traits, shape = model.traits, scene.geobox.shape
    demand = demand_of(scene, model, settings, basis.engine, basis.cost, basis.room, num_pixels=basis.num_pixels)
    sizes = patch_sizes(traits, settings.tta)
    try:
        demand.check_least_patch(traits, sizes, basis.halo_px)
    except ResourceError:
        return math.inf
    if basis.mode == "exact":
        alone = basis.padding == "network"
        tiling = lay_exact(shape, model, settings, demand, halo=basis.halo_px, network_padding=alone)
    else:
        tiling = lay_blend(shape, settings, traits, demand.largest_px)
    patches = tiling.redundancy() * math.prod(shape) / math.prod(tiling.patch_hw)
    return float(demand.seconds(tiling.patch_hw)) * patches


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
        raise misfit(
            f"--overlap {overlap_px} is less than twice the {traits.halo_px} px that the network sees beyond a pixel: "
            "seams would show",
            "leave --overlap out: exact tiling has no seams; or insist with --tiling blend",
        )


def _check_padding(padding: Padding, traits: Traits, mode: str) -> None:
    if padding == "network" and (traits.margin_px or mode == "blend"):
        why = "drops its borders instead of padding them" if traits.margin_px else "is tiled by blending"
        raise misfit(
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
        raise misfit(
            f"--halo-tolerance was given, but the scene is tiled by blending: {reason}",
            "leave it out, or choose --overlap",
        )
    thread = device_thread(threads=engine.spec.threads)
    halo, error = tolerated_halo(scene, model, engine.spec, thread, tolerance=settings.halo_tolerance)
    if halo == whole:
        return whole, f"{reason}; no smaller halo keeps within {settings.halo_tolerance:g}"
    return halo, f"{reason}; {halo} px of them change probabilities by at most {error:.1e} in sampled windows"
