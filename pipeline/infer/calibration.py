"""What a forward costs on this machine, measured once per model and engine and kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import math
import platform
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.infer.host_memory import resident_bytes
from pipeline.model import EngineSpec, cache_folder, has_labels, make_engine
from pipeline.model.cache import write_cached

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.infer.device import DeviceThread
    from pipeline.model import Engine, Model

_SMALL_PX, _LARGE_PX = 384, 1024
_LARGER_PX = 2048, 1536
"""Beyond what caches hold: a pixel of a bfloat16 forward took 56 ns at 1024 px, 62 at 1536, 70 at 2240."""
_LONGEST_S = 1.0
"""Of a forward over the larger patch; a slower network computes more than it moves, and another look gains nothing."""
_REPEATS = 3
_GPU_WARMS_UP_S = 0.3
_MOST_SAVED = 0.9
"""Of what a pixel costs: the encoder sees it all the same."""
_MOST_WAITING = 0.1
"""Waiting for cores over running: 0.005 on a quiet machine with 2 cores, 0.7 beside one other busy process."""
_VERSION = 12
"""Raise when something else is measured, so that cached figures are measured again."""


class Calibration(BaseModel):
    """Time and memory of one forward as functions of the patch's size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fixed_s: float
    """Seconds per forward, whatever its size."""
    s_per_px: float
    """Seconds per pixel of a patch."""
    fixed_bytes: float
    """Resident bytes that the engine takes whatever the patch: weights, code made for it."""
    bytes_per_px: float
    """Resident bytes per pixel of a patch at the peak of a forward, on the host or on the device."""
    saved_s_per_px: float = 0.0
    """Seconds that an output left out saves."""
    saved_bytes_per_px: float = 0.0
    """Resident bytes that an output left out saves."""
    large_px: int | None = None
    """Pixels of a patch beyond which another one costs `large_s_per_px`; None where it costs the same."""
    large_s_per_px: float = 0.0
    """Seconds per pixel beyond `large_px`."""
    first_s_per_px: float = 0.0
    """Seconds per pixel that an engine's first forward takes longer: it writes to memory that was never used."""

    def seconds(self, num_pixels: Any, *, left_out: Any = 0) -> Any:
        """Predicted seconds of a forward over a patch of so many pixels, some of whose outputs are left out.

        Of many patches, where both are arrays.
        """
        beyond = 0 if self.large_px is None else np.maximum(num_pixels - self.large_px, 0)
        taken = self.fixed_s + self.s_per_px * (num_pixels - beyond) + self.large_s_per_px * beyond
        return taken - self.saved_s_per_px * left_out


def calibrate(
    model: Model, spec: EngineSpec, thread: DeviceThread, *, budget_bytes: int, most_bytes: int | None = None
) -> Calibration:
    """Measure, or recall, what this engine does on this machine.

    Args:
        model: The model.
        spec: Of the engine; with `trim_px`, what leaving outputs out saves is measured too.
        thread: Where forwards run.
        budget_bytes: What a forward may take; the larger of the two patches tried shrinks to it.
        most_bytes: What it may take where nothing is left out of a smaller patch; the same if not given.
    """
    most = max(budget_bytes, most_bytes or 0)
    if not model.cacheable:
        return thread.run(lambda: _measure(model, spec, budget_bytes, most))[0]
    path = cache_folder() / "calibration" / f"{_key(model, spec)}.json"
    with contextlib.suppress(OSError, ValidationError):
        return Calibration.model_validate_json(path.read_text())
    before = _scheduled()
    made, whole = thread.run(lambda: _measure(model, spec, budget_bytes, most))
    if whole and not _was_disturbed(before, _scheduled()):
        write_cached(path, made.model_dump_json(indent=1))
    return made


def _scheduled() -> tuple[float, float]:
    """(seconds that this process's threads ran, seconds that they waited for a core); zeros where nobody counts."""
    ran = waited = 0
    for counts in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError):  # a thread has ended meanwhile
            running, waiting, _ = counts.read_text().split()
            ran, waited = ran + int(running), waited + int(waiting)
    return ran / 1e9, waited / 1e9


def _was_disturbed(before: tuple[float, float], after: tuple[float, float]) -> bool:
    """Whether other work took the cores meanwhile: such figures serve this run, and the next one measures again."""
    ran, waited = (now - then for now, then in zip(after, before, strict=True))
    return waited > _MOST_WAITING * max(ran, 0.0)


class _Point(NamedTuple):
    """One patch that was tried."""

    pixels: int
    seconds: float
    nbytes: float
    first_s: float
    """Seconds that the first forward took longer, compiling included."""


def _measure(model: Model, spec: EngineSpec, budget_bytes: int, most_bytes: int) -> tuple[Calibration, bool]:
    """(figures, whether memory sufficed to measure what leaving outputs out saves)."""
    sizes, margin = model.traits.sizes, model.traits.margin_px
    whole = spec.untrimmed
    points = [_try(model, whole, sizes.largest or sizes.at_least(_SMALL_PX + 2 * margin))]
    needed = 2 * spec.trim_px + _SMALL_PX  # less would not show what leaving out saves
    budget = budget_bytes if needed <= _LARGE_PX else most_bytes
    affordable = math.isqrt(int(max(budget, 0) / max(points[0].nbytes / points[0].pixels, 1.0)))
    large = max(_LARGE_PX, needed) + 2 * margin
    side = sizes.at_most(min(sizes.at_least(large), affordable)) if sizes.largest is None else None
    shown = not spec.trim_px or sizes.largest is not None or (side or 0) >= needed
    if side is not None and side * side > points[0].pixels:
        points.append(_try(model, whole, side))
    pixels = [point.pixels for point in points]
    fixed_s, s_per_px = _line(pixels, [point.seconds for point in points])
    fixed_bytes, bytes_per_px = _line(pixels, [point.nbytes for point in points])
    made = Calibration(fixed_s=fixed_s, s_per_px=s_per_px, fixed_bytes=fixed_bytes, bytes_per_px=max(bytes_per_px, 4.0))
    if spec.trim_px and side is not None:
        made = _with_savings(made, model, spec, side, points[-1])
    if spec.device != "cpu" or len(points) == 1:  # on a GPU patches are limited otherwise
        return made, shown
    for wanted in _LARGER_PX:
        larger = sizes.at_most(min(sizes.at_least(wanted + 2 * margin), affordable))
        if larger is not None and larger * larger > pixels[-1] and made.seconds(larger * larger) <= _LONGEST_S:
            points.append(_try(model, whole, larger))
            break
    return _with_size(made, points), shown


def _with_size(made: Calibration, points: Sequence[_Point]) -> Calibration:
    """What is not the same for each pixel, from two or three patches of rising size."""
    small, large = points[0], points[-1]
    first = (large.first_s - small.first_s) / (large.pixels - small.pixels)
    made = made.model_copy(update={"first_s_per_px": max(first, 0.0)})
    if len(points) == 2:  # noqa: PLR2004
        return made
    middle = points[1]
    slope = (large.seconds - middle.seconds) / (large.pixels - middle.pixels)
    update = {"large_px": middle.pixels, "large_s_per_px": max(slope, made.s_per_px / 2)}
    return made.model_copy(update=update)


def _with_savings(made: Calibration, model: Model, spec: EngineSpec, side: int, whole: _Point) -> Calibration:
    """What leaving outputs out saves, from one more patch as large as the largest that was tried."""
    left_out = side * side - (side - 2 * spec.left_out_px) ** 2
    if not left_out or side <= 2 * spec.trim_px or side * side != whole.pixels:
        return made
    trimmed = _try(model, spec, side)
    saved_s, saved_bytes = (whole.seconds - trimmed.seconds) / left_out, (whole.nbytes - trimmed.nbytes) / left_out
    return made.model_copy(
        update={
            "saved_s_per_px": min(max(saved_s, 0.0), _MOST_SAVED * made.s_per_px),
            "saved_bytes_per_px": min(max(saved_bytes, 0.0), _MOST_SAVED * made.bytes_per_px),
        }
    )


def _try(model: Model, spec: EngineSpec, side: int) -> _Point:
    """Time and memory of a forward over a square, on an engine of its own."""
    engine = make_engine(model, spec)
    x = _noise(model, spec, (side, side))

    def first() -> None:
        if x.is_cuda:  # what is recorded there is what runs
            engine.prepare(tuple(x.shape), labels=has_labels(model.spec))
        _forward(engine, x)

    started = time.perf_counter()
    nbytes = peak_growth_bytes(first, device=spec.device)
    first_s = time.perf_counter() - started
    seconds = _least_seconds(lambda: _forward(engine, x), x)
    return _Point(side * side, seconds, nbytes, first_s - seconds)


def _noise(model: Model, spec: EngineSpec, patch_hw: tuple[int, int], *, batch: int = 1) -> torch.Tensor:
    shape = batch, len(model.spec.bands), *patch_hw
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(spec.device)


class Batching(NamedTuple):
    """Patches per forward, and what a patch then takes."""

    batch: int
    seconds: float | None
    """Per patch; None where it was not measured."""


def choose_batch(
    model: Model, spec: EngineSpec, thread: DeviceThread, patch_hw: tuple[int, int], *, largest: int
) -> Batching:
    """How many small patches a GPU wants at once: the fewest within 5 % of the best time per patch.

    Args:
        model: The model.
        spec: Of the engine.
        thread: Where forwards run.
        patch_hw: Height and width of a patch.
        largest: Patches that memory allows.
    """

    def measure() -> Batching:
        engine = make_engine(model, spec)
        tried: list[tuple[float, int]] = []
        for batch in (n for n in _BATCHES if n <= max(largest, 1)):
            x = _noise(model, spec, patch_hw, batch=batch)
            try:
                engine.prepare(tuple(x.shape), labels=False)
                seconds = _least_seconds(lambda x=x: engine.run(x), x)  # type: ignore[misc]
            except Exception:  # noqa: BLE001 - a network of one fixed batch, or too little memory: each backend says so
                break
            tried.append((seconds / batch, batch))
        best = min(tried, default=(0.0, 1))[0]
        return next((Batching(batch, seconds) for seconds, batch in tried if seconds <= 1.05 * best), Batching(1, None))

    return thread.run(measure)


_BATCHES = (1, 2, 4, 8, 16, 32)


def _line(pixels: list[int], values: Sequence[float]) -> tuple[float, float]:
    """(value at no pixels, value per pixel) of a line through one or two points; neither is negative.

    The slope is at least half of what the larger point alone would give: two small numbers make no steep promise.
    """
    slope = values[-1] / pixels[-1]
    if len(pixels) > 1:
        slope = min(slope, max((values[1] - values[0]) / (pixels[1] - pixels[0]), slope / 2))
    return max(values[-1] - slope * pixels[-1], 0.0), slope


def peak_growth_bytes(function: Callable[[], object], *, device: str = "cpu") -> int:
    """How much memory grows while a function runs, at its peak."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return int(torch.cuda.max_memory_allocated() - before)
    done = threading.Event()
    peak = before = resident_bytes()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return max(peak, resident_bytes()) - before


def _least_seconds(function: Callable[[], object], x: torch.Tensor) -> float:
    """The best of some calls. A GPU that was idle begins slowly: its clock takes a while to rise."""
    least, count, end = math.inf, 0, time.perf_counter() + (_GPU_WARMS_UP_S if x.is_cuda else 0.0)
    while count < _REPEATS or time.perf_counter() < end:
        started = time.perf_counter()
        function()
        if x.is_cuda:
            torch.cuda.synchronize()
        least, count = min(least, time.perf_counter() - started), count + 1
    return least


def _forward(engine: Engine, x: torch.Tensor) -> None:
    with torch.inference_mode():
        if engine.label(x) is None:
            engine.run(x)


def _key(model: Model, spec: EngineSpec) -> str:
    """Same figures only for the same weights, engine, library and machine."""
    machine = torch.cuda.get_device_name() if spec.device == "cuda" else f"{platform.node()} {_cpu()}"
    parts = (_VERSION, model.digest, spec.model_dump_json(), torch.__version__, machine)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _cpu() -> str:
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return f"{names[:1]} {len(names)}"
    return platform.processor()
