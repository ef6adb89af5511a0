"""Everything that `auto` means, resolved once by the client and frozen: workers never decide again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError, ResourceError, UsageError
from pipeline.grid import Axis, Padding, Tiling, balanced_core, blend_tiling, exact_tiling, round_up
from pipeline.infer import Augmentation, Taper, device_thread, resolve_device, symmetries
from pipeline.model import EngineSpec
from pipeline.run.choose import EngineChoice, choose_engine
from pipeline.run.halo import tolerated_halo

if TYPE_CHECKING:
    from pipeline.grid import SizeRule
    from pipeline.model import Model, Traits
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene

TILES_IN_FLIGHT = min(3, max(2, os.cpu_count() or 1))
"""Tiles that one worker holds at a time, so that reading, computing and writing overlap; more readers want cores."""
_DEFAULT_MEMORY = 1_500_000_000
"""Budget per worker unless --memory says otherwise: with libraries and caches a run then stays below 2 GB."""
_LIBRARIES = 600_000_000
"""Resident size of a worker before it does anything (PyTorch, GDAL, Dask), measured by `make bench-memory`."""
_WORKSPACE = 1.35
"""PyTorch's own buffers where a forward was not calibrated, as a factor on its live tensors."""
_LEANEST = 0.35
"""Memory of the leanest engine (OpenVINO, bfloat16) over that of PyTorch's live tensors: 118 of 336 bytes per pixel."""
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
    probabilities: bool
    """Whether probabilities are kept."""
    num_classes: int
    """Classes of the model."""
    bands: int
    """Bands read."""
    itemsize_bytes: int
    """Bytes of a stored value."""
    fixed_bytes: int
    """Memory that the engine takes whatever the patch."""
    bytes_per_px: float
    """Memory of a forward and of what is done with its output, per pixel of a patch."""
    forward_s: float | None
    """Predicted seconds of one forward; None where it was not measured. A patch takes `forwards_per_patch` of them."""

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
        return int(self.fixed_bytes + math.prod(self.tiling.patch_hw) * self.bytes_per_px)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak resident memory of a worker."""
        rim = 2 * self.tiling.halo_px + (self.tiling.rows.patch if self.tiling.mode == "blend" else 0)
        sides = [min(side, n) + rim for side, n in zip(self.tiling.tile_hw, self.tiling.shape, strict=True)]
        blended = 4 * (self.num_classes + 1) if self.tiling.mode == "blend" or self.probabilities else 0
        per_px = tile_bytes_per_px(self.bands, self.itemsize_bytes) + blended
        return int(_LIBRARIES + self.forward_bytes + TILES_IN_FLIGHT * math.prod(sides) * per_px)

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
        return pixels * (1 if self.num_classes <= 255 else 2) + (pixels * self.num_classes if self.probabilities else 0)  # noqa: PLR2004

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
            "scratch_bytes": self.scratch_bytes,
        }


def tile_bytes_per_px(bands: int, itemsize_bytes: int) -> int:
    """Bytes per pixel of a tile in flight: values as read and as extended beyond the rim, validity, mask."""
    return bands * (2 * itemsize_bytes + 1) + 3


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
    device = resolve_device(settings.device)
    sizes = patch_sizes(traits, settings.tta)
    if mode == "exact" and settings.halo_tolerance is None:  # before anything is measured that would not fit either
        _largest_patch_px(forward_budget(settings), traits.bytes_per_px * _LEANEST, traits, sizes, traits.halo_px or 0)
    engine = choose_engine(
        scene, model, settings, device=device, one_size=padding != "network", budget_bytes=forward_budget(settings)
    )
    bytes_per_px = _bytes_per_px(engine, model, settings.tta)
    tile_bytes = TILES_IN_FLIGHT * tile_bytes_per_px(len(model.spec.bands), int(scene.dtype.itemsize))
    halo, reason = _halo(scene, model, settings, engine, mode, reason)
    fixed_bytes = 0 if engine.calibration is None else int(engine.calibration.fixed_bytes)
    budget = forward_budget(settings) - fixed_bytes
    largest_px = _largest_patch_px(budget, bytes_per_px + tile_bytes, traits, sizes, halo)
    if mode == "exact":
        tiling = _exact(
            scene.geobox.shape, settings, traits, engine, largest_px, halo=halo, network_padding=padding == "network"
        )
    else:
        tiling = _blend(scene.geobox.shape, settings, traits, largest_px)
    patch_px = math.prod(tiling.patch_hw)
    if settings.memory is not None and patch_px > largest_px:  # only --patch can ask for more
        need = int(settings.memory - budget + patch_px * (bytes_per_px + tile_bytes))
        raise _too_little(f"patches of {tiling.patch_hw[0]} x {tiling.patch_hw[1]} px need {need / 1e9:.1f} GB", need)
    return Plan(
        tiling=tiling,
        reason=reason,
        padding=padding,
        taper=settings.taper,
        tta=settings.tta,
        engine=engine.spec,
        engine_reason=engine.reason,
        flips_frac=engine.flips_frac,
        probabilities=settings.probabilities,
        num_classes=len(model.spec.classes),
        bands=len(model.spec.bands),
        itemsize_bytes=int(scene.dtype.itemsize),
        fixed_bytes=fixed_bytes,
        bytes_per_px=bytes_per_px,
        forward_s=None if engine.calibration is None else engine.calibration.seconds(patch_px),
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
        return "blend", "--overlap was given; exact mode takes none"
    return traits.tiling, traits.reason


def _check_padding(padding: Padding, traits: Traits, mode: str) -> None:
    if padding == "network" and (traits.margin_px or mode == "blend"):
        why = "drops its borders instead of padding them" if traits.margin_px else "is tiled by blending"
        raise _misfit(
            f"--padding network needs a network that pads itself and exact tiling; this one {why}",
            "use --padding reflect",
        )


def _bytes_per_px(engine: EngineChoice, model: Model, tta: Augmentation) -> float:
    """Per pixel of a patch: scaled input, forward, and the copies that activation and weighting make of its output."""
    after = len(model.spec.classes) * 4 * 3 + 8 if engine.spec.backend == "torch" else 0
    measured = engine.calibration.bytes_per_px if engine.calibration else model.traits.bytes_per_px * _WORKSPACE
    averaging = 0 if tta == "none" else 8 * len(model.spec.classes) + 4 * len(model.spec.bands)
    return max(measured, after) + averaging + 4 * len(model.spec.bands)


def forward_budget(settings: SegmentSettings) -> int:
    """Bytes for a forward and the tiles in flight."""
    memory = settings.memory or min(_DEFAULT_MEMORY, int(0.6 * _available_bytes() / settings.workers))
    return memory - _LIBRARIES


def _largest_patch_px(budget: int, bytes_per_px: float, traits: Traits, sizes: SizeRule, halo: int) -> int:
    """Pixels of the largest patch that fits.

    Raises:
        ResourceError: RS-004 when not even the smallest useful patch fits.
    """
    least = sizes.at_least(2 * halo + max(traits.stride, 2 * traits.margin_px, 16))
    if least * least * bytes_per_px > budget:
        need = int(least * least * bytes_per_px) + _LIBRARIES
        raise _too_little(f"a patch of {least} px, the smallest that is any use, needs {need / 1e9:.1f} GB", need)
    return int(budget / bytes_per_px)


def _too_little(what: str, need: int) -> ResourceError:
    return ResourceError(
        f"{what}; less is available",
        code="RS-004",
        title="Not enough memory",
        fix=f"give --memory {need / 1e9:.1f}GB, close other programs, or use --halo-tolerance 0.001 or --tiling blend",
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
    settings: SegmentSettings,
    traits: Traits,
    engine: EngineChoice,
    largest_px: int,
    *,
    halo: int,
    network_padding: bool,
) -> Tiling:
    """Patches from --patch where given, else the fastest that memory allows, in equal parts."""
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
            largest_patch_px=largest_px,
            seconds=float if engine.calibration is None else engine.calibration.seconds,
            square=square,
        )
    return exact_tiling(
        shape,
        core_hw=core_hw,
        halo_px=halo,
        stride=stride,
        margin_px=traits.margin_px,
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


def _available_bytes() -> int:
    """Memory that can still be had, container limits included where the kernel tells them."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            fields = dict(line.split(":", 1) for line in file)
        available = int(fields["MemAvailable"].split()[0]) * 1024
        with open("/sys/fs/cgroup/memory.max") as file:  # noqa: PTH123
            limit = file.read().strip()
        if limit.isdigit():
            available = min(available, int(limit))
    except (OSError, KeyError, ValueError):
        pass
    return available
