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
from pipeline.grid import Axis, Padding, SizeRule, Tiling, blend_tiling, exact_tiling, round_up
from pipeline.infer import Taper, resolve_device

if TYPE_CHECKING:
    from pipeline.model import Model, Precision, Traits
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene

TILES_IN_FLIGHT = 3
"""Tiles that one worker holds at a time, so that reading, computing and writing overlap."""
_DEFAULT_MEMORY = 1_400_000_000
"""Budget per worker unless --memory says otherwise: with libraries and caches a run then stays below 2 GB."""
_LIBRARIES = 600_000_000
"""Resident size of a worker before it does anything (PyTorch, GDAL, Dask), measured by `make bench-memory`."""
_WORKSPACE = 1.35
"""Convolution libraries' own buffers, as a factor on the live tensors, measured by `make bench-memory`."""
_LARGEST_PATCH = 2048
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
    device: str
    """`cpu` or `cuda`."""
    precision: Precision
    """Of the forward."""
    threads: int
    """Threads per forward."""
    probabilities: bool
    """Whether probabilities are kept."""
    num_classes: int
    """Classes of the model."""
    bands: int
    """Bands read."""
    itemsize_bytes: int
    """Bytes of a stored value."""
    bytes_per_px: float
    """Live tensors of a forward, per pixel of a patch, measured."""

    @property
    def digest(self) -> str:
        """Identity of the plan, hex: every tile's record carries it."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def forward_bytes(self) -> int:
        """Predicted peak of one forward and of what is done with its output."""
        return int(math.prod(self.tiling.patch_hw) * patch_bytes_per_px(self.bytes_per_px, self.num_classes))

    @property
    def peak_bytes(self) -> int:
        """Predicted peak resident memory of a worker."""
        return _LIBRARIES + self.forward_bytes + TILES_IN_FLIGHT * self._tile_bytes()

    def _tile_bytes(self) -> int:
        rim = 2 * self.tiling.halo_px + (self.tiling.rows.patch if self.tiling.mode == "blend" else 0)
        height, width = (min(side, n) + rim for side, n in zip(self.tiling.tile_hw, self.tiling.shape, strict=True))
        kept = 4 * (self.num_classes + 1) if self.tiling.mode == "blend" or self.probabilities else 2
        return height * width * (self.bands * (self.itemsize_bytes + 1) + kept)

    @property
    def scratch_bytes(self) -> int:
        """Disk for the store, at worst: incompressible masks and probabilities."""
        pixels = math.prod(self.tiling.shape)
        return pixels * (1 if self.num_classes <= 255 else 2) + (pixels * self.num_classes if self.probabilities else 0)  # noqa: PLR2004

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Plan:
        """The plan that `to_json` gave."""
        tiling = dict(document["tiling"])
        tiling["shape"] = tuple(tiling["shape"])
        tiling["rows"], tiling["cols"] = Axis(**tiling["rows"]), Axis(**tiling["cols"])
        return cls(**{**document, "tiling": Tiling(**tiling)})

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
            "padding": self.padding,
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "peak_memory_bytes": self.peak_bytes,
            "scratch_bytes": self.scratch_bytes,
        }


def patch_bytes_per_px(forward: float, num_classes: int) -> float:
    """Bytes per pixel of a patch: the forward, or its output with the copies that activation and weighting make."""
    return max(forward * _WORKSPACE, num_classes * 4 * 3 + 8)


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
    shape = scene.geobox.shape
    itemsize = int(scene.dtype.itemsize)
    common: dict[str, Any] = {
        "stride": traits.stride,
        "margin_px": traits.margin_px,
        "sizes": traits.sizes,
        "tile_px": settings.tile,
    }
    budget = _forward_budget(settings)
    largest = _largest_patch(budget, traits, len(model.spec.classes))
    if mode == "exact":
        halo = traits.halo_px or 0
        core = _exact_core(shape, settings, traits, halo, largest)
        tiling = exact_tiling(shape, core_px=core, halo_px=halo, network_padding=padding == "network", **common)
    else:
        patch = settings.patch or min(_BLEND_PATCH, largest)
        overlap = settings.overlap if settings.overlap is not None else patch // 4
        try:
            tiling = blend_tiling(shape, patch_px=patch, overlap_px=overlap, **common)
        except ValueError as error:
            raise _misfit(str(error), "choose a smaller --overlap or a larger --patch") from error
    return Plan(
        tiling=tiling,
        reason=reason,
        padding=padding,
        taper=settings.taper,
        device=resolve_device(settings.device),
        precision="float32" if settings.precision == "auto" else settings.precision,
        threads=max(1, (os.cpu_count() or 1) // settings.workers),
        probabilities=settings.probabilities,
        num_classes=len(model.spec.classes),
        bands=len(model.spec.bands),
        itemsize_bytes=itemsize,
        bytes_per_px=traits.bytes_per_px,
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


def _forward_budget(settings: SegmentSettings) -> int:
    """Bytes that one forward may take."""
    memory = settings.memory or min(_DEFAULT_MEMORY, int(0.6 * _available_bytes() / settings.workers))
    return int(0.8 * (memory - _LIBRARIES))  # the rest is tiles in flight


def _largest_patch(budget: int, traits: Traits, num_classes: int) -> int:
    """Largest allowed side whose forward fits the budget.

    Raises:
        ResourceError: RS-004 when not even the smallest useful patch fits.
    """
    sizes: SizeRule = traits.sizes
    per_px = patch_bytes_per_px(traits.bytes_per_px, num_classes)
    side = min(int(math.sqrt(max(budget, 0) / per_px)), _LARGEST_PATCH)
    least = sizes.at_least(2 * (traits.halo_px or 0) + max(traits.stride, 2 * traits.margin_px, 16))
    if side < least:
        need = int(least * least * per_px / 0.8) + _LIBRARIES
        raise ResourceError(
            f"a patch of {least} px, the smallest that is any use, needs {need / 1e9:.1f} GB; less is available",
            code="RS-004",
            title="Not enough memory",
            fix=f"give --memory {need / 1e9:.1f}GB, close other programs, or use --tiling blend",
        )
    return (side - sizes.remainder) // sizes.multiple * sizes.multiple + sizes.remainder


def _exact_core(shape: tuple[int, int], settings: SegmentSettings, traits: Traits, halo: int, largest: int) -> int:
    """Side of a patch core: from --patch where given, else as large as memory allows, in equal parts."""
    if settings.patch is not None:
        core = (settings.patch - 2 * halo) // traits.stride * traits.stride
        if core < traits.stride:
            raise _misfit(
                f"--patch {settings.patch} leaves no core: the network needs a halo of {halo} px on each side",
                f"use a patch of at least {round_up(2 * halo + 128, traits.stride)} px",
            )
        return core
    core = max(traits.stride, (largest - 2 * halo) // traits.stride * traits.stride)
    longest = max(shape)
    return round_up(math.ceil(longest / math.ceil(longest / core)), traits.stride)


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
