"""`make bench`: the whole job against its floors, in one run, as ratios.

python -m tests.bench.speed [--only float32 bfloat16 wide resnet null growth] [--size 8192] [--wide-size 8192]
    [--null-size 16384] [--repeats 3] [--memory 3.5GB]
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
import torch

import pipeline as sm
from pipeline.grid import Window
from pipeline.infer import device_thread
from pipeline.model import labels_of, make_engine
from pipeline.scene import close_all, decode_on, open_scene
from tests.bench.common import OUT, cpu, interleaved, null_model, publish, resnet, rounds, scene_of, trained_unet, unet

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.model import Model
    from pipeline.run.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network over one scene, with the options of `segment`."""

    name: str
    load: Callable[[], Model]
    """A model that nothing has used yet; its engine is not made."""
    scene: Path
    options: dict[str, Any]
    bar: str
    untrained: Model | None = None
    """The same network with random weights, whose mask is noise: the most that a mask can cost."""

    @functools.cached_property
    def model(self) -> Model:
        """The same one each time."""
        return self.load()


def bare_forward(case: Case, plan: Plan, *, trim: bool = False, scale: bool = False) -> float:
    """Seconds of the network alone for the scene's own pixels: no halo, no reading, nothing kept.

    One patch of real pixels, of the plan's size on the plan's engine, is given again and again. The engine lives no
    longer than this call: what it holds would make the memory of those that come after it slower to get.

    Args:
        case: Network and scene.
        plan: Patch and engine.
        trim: Leave outputs in the halo out, as the plan's engine does; the bare network computes them.
        scale: Make its input from stored values each time.
    """
    stored = _stored_patch(case, plan)
    x = _scaled(case, stored)
    thread = device_thread(threads=plan.engine.threads)
    spec = plan.engine if trim else plan.engine.untrimmed
    engine = thread.run(lambda: make_engine(case.model, spec))

    def patch() -> None:
        with torch.inference_mode():
            if scale:
                _scaled(case, stored, into=x)
            labels_of(engine, x, case.model.spec)

    return _seconds_for_scene(lambda: thread.run(patch), plan)


def _stored_patch(case: Case, plan: Plan) -> torch.Tensor:
    """Stored values `(band, y, x)` from the middle of the scene, of the plan's patch size."""
    height, width = plan.tiling.patch_hw
    scene = open_scene(case.scene)
    row, col = ((n - side) // 2 for n, side in zip(scene.geobox.shape, (height, width), strict=True))
    block = scene.read_block(Window(row_off=row, col_off=col, height=height, width=width))
    return torch.from_numpy(np.array(block.data))


def _scaled(case: Case, stored: torch.Tensor, *, into: torch.Tensor | None = None) -> torch.Tensor:
    """What the network is given, `(1, band, y, x)`, made by all threads."""
    gain, bias = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in case.model.spec.scaling.gain_and_bias())
    x = torch.empty((1, *stored.shape)) if into is None else into
    x[0].copy_(stored).mul_(gain).add_(bias)
    return x


def _seconds_for_scene(forward: Callable[[], object], plan: Plan) -> float:
    """Seconds of as many forwards of one patch as have the scene's pixels, after one that compiles."""
    forward()
    patches = math.prod(plan.tiling.shape) / math.prod(plan.tiling.patch_hw)
    started = time.perf_counter()
    for _ in range(round(patches)):
        forward()
    return (time.perf_counter() - started) * patches / round(patches)


def exported_forward(case: Case, plan: Plan) -> float:
    """As `bare_forward`, of the network as OpenVINO converts and compiles it: scaled pixels in, logits out.

    What a loop that somebody writes around the library would call; our own graph is another (ADR 5).
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    x = _scaled(case, _stored_patch(case, plan)).numpy()
    graph = openvino.convert_model(case.model.network, example_input=torch.zeros(1, x.shape[1], 256, 256))
    graph.reshape(list(x.shape))
    precision = {"float32": "f32", "bfloat16": "bf16"}[plan.engine.precision]
    config = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": plan.engine.threads}
    request = openvino.Core().compile_model(graph, "CPU", config).create_infer_request()
    return _seconds_for_scene(lambda: request.infer([x], share_inputs=True), plan)


def end_to_end(case: Case, model: Model | None = None) -> tuple[float, float]:
    """(seconds, seconds of the inference stage) of the whole job into a fresh folder, without polygons."""
    shutil.rmtree(OUT / "speed", ignore_errors=True)
    started = time.perf_counter()
    result = sm.segment(case.scene, model or case.model, OUT / "speed", vectors="none", **case.options)
    return time.perf_counter() - started, result.summary["timings_s"]["infer"]


def warm_and_first(case: Case) -> tuple[float, float, float]:
    """`end_to_end` of a warm model, as of a batch's second scene, then the seconds of the run that warmed it."""
    model = case.load()
    first, _ = end_to_end(case, model)
    return *end_to_end(case, model), first


def gdal_copy(scene: Path, **options: Any) -> float:
    """Seconds of a raster through GDAL's own COG driver."""
    target = OUT / "copy.tif"
    target.unlink(missing_ok=True)
    started = time.perf_counter()
    with rasterio.Env(GDAL_CACHEMAX=64 << 20):
        rasterio.shutil.copy(scene, target, driver="COG", compress="DEFLATE", num_threads="ALL_CPUS", **options)
    seconds = time.perf_counter() - started
    os.sync()  # what is still to be written would be charged to whoever comes next
    return seconds


def decode(case: Case, plan: Plan) -> float:
    """Seconds of reading the scene alone, tile by tile, on one thread."""
    close_all()
    decode_on(1)  # a run before this one may have left more
    scene = open_scene(case.scene)
    started = time.perf_counter()
    for tile in plan.tiling.tiles():
        scene.read_block(tile.core)
    return time.perf_counter() - started


def beside_forwards(case: Case, plan: Plan) -> float:
    """Processor seconds of what no program can leave out beside forwards: decoding once, and GDAL's COG of the mask."""
    started = time.process_time()
    decode(case, plan)
    gdal_copy(OUT / "speed" / "mask.tif", **_OWN_OVERVIEWS)
    return time.process_time() - started


_OWN_OVERVIEWS = {"level": 5, "overviews": "IGNORE_EXISTING", "resampling": "NEAREST"}
"""Compressed as our masks are; halved by GDAL's fastest way, which may lose or shift what is narrow."""


def ratio(ours_s: NDArray[np.float64], floor_s: NDArray[np.float64]) -> str:
    """For the table: the median of the rounds' ratios, whose two sides saw the same minutes, and how they spread."""
    each = ours_s / floor_s
    spread = f"{each.min():.2f} to {each.max():.2f}"
    return f"**{np.median(each):.2f}** ({np.median(ours_s):.1f} s ÷ {np.median(floor_s):.1f} s; {spread})"


def measure(case: Case, repeats: int) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    """Rows of the table and the numbers behind them, for one network."""
    plan = sm.plan(case.scene, case.model, vectors="none", **case.options)
    work: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare_forward(case, plan),
        "forwards": lambda: bare_forward(case, plan, trim=True),
        "segment": lambda: warm_and_first(case),
        "beside": lambda: beside_forwards(case, plan),
    }
    if case.untrained is not None:
        work["untrained"] = lambda: end_to_end(case, case.untrained)
    if plan.engine.backend == "openvino":
        work["exported"] = lambda: exported_forward(case, plan)
    times = rounds(repeats, **work)
    floor, forwards, beside = (times[name][:, 0] for name in ("bare", "forwards", "beside"))
    total, infer, first = times["segment"].T
    redundancy = plan.tiling.redundancy()
    patch, core = plan.tiling.patch_hw, (plan.tiling.rows.step, plan.tiling.cols.step)
    rows = [
        (f"{case.name}: end to end ÷ bare forward of the scene's pixels", ratio(total, floor), case.bar),
        ("— the first run of a model, whose engine is made and whose memory is new", ratio(first, floor), ""),
        (
            f"— inference stage ÷ bare forward over all patch pixels (× {redundancy:.3f})",
            ratio(infer, floor * redundancy),
            "≤ 1.08" if plan.engine.precision == "float32" else "",
        ),
        (
            "— inference stage ÷ its own forwards, which leave outputs in the halo out",
            ratio(infer, forwards * redundancy),
            "",
        ),
    ]
    least = forwards * redundancy + beside / plan.engine.threads
    rows.append(
        ("— those, decoding and GDAL's COG of the mask, all cores busy all the time ÷ bare", ratio(least, floor), "")
    )
    if "untrained" in times:
        text = "— end to end with random weights, whose mask is noise ÷ bare"
        rows.append((text, ratio(times["untrained"][:, 0], floor), ""))
    if "exported" in times:
        text = "— end to end ÷ the same of the network as OpenVINO compiles it, logits out"
        rows.append((text, ratio(total, times["exported"][:, 0]), ""))
    rows.append((f"— {plan.engine.backend}, patch {patch[0]} × {patch[1]}, core {core[0]} × {core[1]} px", "", ""))
    return rows, {"rounds_s": _listed(times), "plan": plan.summary()}


def _listed(times: dict[str, NDArray[np.float64]]) -> dict[str, list[list[float]]]:
    return {name: values.round(3).tolist() for name, values in times.items()}


def network_case(kind: str, given: argparse.Namespace) -> Case:
    """One of the networks that the bars name, or one that is not ours and sees far."""
    precision = "bfloat16" if kind == "bfloat16" else "float32"
    size = {"resnet": _RESNET_PX, "wide": given.wide_size}.get(kind, given.size)
    bar = {"resnet": "", "bfloat16": "≤ 1.45"}.get(kind, "≤ 1.25")
    names = {"resnet": "U-Net of others with a ResNet-34 encoder", "wide": "width 32"}
    loads = {"resnet": resnet, "wide": lambda: unet(width=32)}
    learned = kind not in loads
    return Case(
        name=f"{precision}, {names.get(kind, 'trained, width 16')}, {size}²",
        load=loads.get(kind, lambda: sm.load_model(trained_unet())),
        scene=scene_of(size),
        options={"memory": given.memory, "precision": precision},
        bar=bar,
        untrained=unet(width=16) if learned else None,
    )


_RESNET_PX = 4096


def measure_null(size: int, repeats: int) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    """Everything but the network, against GDAL's own copy and against its own parts."""
    large = scene_of(size)
    mask = OUT / "speed" / "mask.tif"
    null = Case(name="null model", load=null_model, scene=large, options={}, bar="≤ 0.55")
    plan = sm.plan(large, null.model, vectors="none")  # measured once per model; not part of a run
    times = rounds(
        repeats,
        copy=lambda: gdal_copy(large),
        segment=lambda: end_to_end(null),
        decode=lambda: decode(null, plan),
        forwards=lambda: bare_forward(null, plan, scale=True),
        mask_cog=lambda: gdal_copy(mask, **_OWN_OVERVIEWS),
        mask_copy=lambda: gdal_copy(mask, level=5),
    )
    name = f"null model (1×1 convolution), {size}² 4-band uint16: end to end ÷ GDAL copy to COG"
    seconds = {name: values[:, 0] for name, values in times.items()}
    total, parts = seconds["segment"], seconds["decode"] + seconds["forwards"]
    text = "— ÷ its parts one after the other: decoding on one thread, forwards, GDAL making a COG of the mask"
    rows = [
        (name, ratio(total, seconds["copy"]), null.bar),
        (text, ratio(total, parts + seconds["mask_cog"]), "≤ 1.15"),
        ("— the same, had the mask its overviews already", ratio(total, parts + seconds["mask_copy"]), ""),
    ]
    return rows, {"rounds_s": _listed(times)}


def measure_growth(repeats: int) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    """Time of the null model per megapixel, from a small scene to one of a gigapixel."""
    cases = [Case(name="null model", load=null_model, scene=scene_of(size), options={}, bar="") for size in _GROWTH]
    work = {str(size): functools.partial(end_to_end, case) for size, case in zip(_GROWTH, cases, strict=True)}
    medians = interleaved(repeats, **work)
    each = {size: medians[str(size)][0] / (size * size / 1e6) for size in _GROWTH}
    text = ", ".join(f"{size}² {medians[str(size)][0]:.1f} s = {each[size] * 1e3:.1f} ms/Mpx" for size in _GROWTH)
    return [("null model, end to end, by size of the scene", text, "")], {"seconds": medians}


_GROWTH = (2048, 4096, 8192, 16384, 32768)


def main() -> None:
    """Measure and publish, part by part; what other kinds of processors showed stays."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=["float32", "bfloat16", "wide", "resnet", "null", "growth"])
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--wide-size", type=int, default=8192)
    parser.add_argument("--null-size", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", default="3.5GB")
    given = parser.parse_args()
    for kind in given.only:
        print(kind, flush=True)
        if kind == "null":
            made, facts = measure_null(given.null_size, given.repeats)
        elif kind == "growth":
            made, facts = measure_growth(given.repeats)
        else:
            made, facts = measure(network_case(kind, given), given.repeats)
        options = f"--only {kind} --repeats {given.repeats}"
        if kind not in {"null", "growth"}:  # those have what a run has unasked
            options += f" --memory {given.memory}"
        title = "Speed: the whole job against its floors"
        publish("speed", title, f"python -m tests.bench.speed {options}", made, facts, part=f"{kind}, {cpu()}")


if __name__ == "__main__":
    main()
