"""What is decided once for a model, its settings and a kind of machine, before any scene is tiled: engine, halo, room.

Decided where the work will be done. The scenes of a batch share it, so that an archive is computed in one way.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import ModelError
from pipeline.infer import Batching, Calibration, choose_batch, device_thread, resolve_device
from pipeline.model import EngineSpec
from pipeline.run.choose import EngineChoice, choose_engine, measured_cost, trim_to_halo
from pipeline.run.demand import check_leanest_patch, demand_of
from pipeline.run.halo import tolerated_halo
from pipeline.run.room import Room, measuring_bytes, room_of
from pipeline.run.tilings import lay_blend, misfit, patch_sizes
from pipeline.run.workers import device_wanted

if TYPE_CHECKING:
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
    room = room_of(settings, device)
    if mode == "exact" and settings.halo_tolerance is None:  # before anything is measured that would not fit either
        sizes = patch_sizes(traits, settings.tta)
        check_leanest_patch(room.forward_bytes, traits, sizes)
    work = math.prod(scene.geobox.shape) if num_pixels is None else num_pixels
    engine = choose_engine(scene, model, settings, device=device, one_size=padding != "network", num_pixels=work)
    halo, reason = _halo(scene, model, settings, engine, mode, reason)
    measuring = measuring_bytes(settings, device)
    if mode == "exact":
        engine = trim_to_halo(engine, model, halo, budget_bytes=measuring)
    cost = measured_cost(engine, model, budget_bytes=room.forward_bytes, most_bytes=measuring)
    batching = None
    if mode == "blend" and device == "cuda":
        demand = demand_of(scene, model, settings, engine, cost, room, blend=True)
        patch_hw = lay_blend(scene.geobox.shape, settings, traits, demand).patch_hw
        fitting = demand.largest_px // math.prod(patch_hw)
        batching = choose_batch(
            model, engine.spec, device_thread(threads=engine.spec.threads), patch_hw, largest=fitting
        )
    return Basis(
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
