"""`make bench`: the whole job against its floors, in one run, as ratios.

python -m tests.bench.speed [--size 8192] [--wide-size 4096] [--null-size 16384] [--repeats 3] [--memory 3.5GB]
"""

from __future__ import annotations

import argparse
import math
import shutil
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
from pipeline.infer import Scaler, device_thread, labels_of
from pipeline.model import make_engine
from pipeline.scene import open_scene
from tests.bench.common import OUT, interleaved, null_model, publish, scene_of, unet

if TYPE_CHECKING:
    from pipeline.model import Model
    from pipeline.run.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network over one scene, with the options of `segment`."""

    name: str
    model: Model
    scene: Path
    options: dict[str, Any]
    bar: str


class Bare:
    """The network alone at the plan's patch size, on the plan's engine: no halo, no reading, nothing kept.

    One patch of real pixels is given again and again; the time is that of as many pixels as the scene has.
    """

    def __init__(self, case: Case, plan: Plan) -> None:
        self._plan = plan
        self._model = case.model
        height, width = plan.tiling.patch_hw
        scene = open_scene(case.scene)
        box = scene.geobox.shape
        block = scene.read_block(
            Window(row_off=(box[0] - height) // 2, col_off=(box[1] - width) // 2, height=height, width=width)
        )
        self._data = torch.from_numpy(np.array(block.data))
        self._thread = device_thread(threads=plan.engine.threads)
        self._engine = self._thread.run(lambda: make_engine(case.model, plan.engine))
        self._scaler = Scaler(case.model.spec.scaling)
        self._thread.run(self._patch)  # the first forward compiles

    def _patch(self) -> None:
        with torch.inference_mode():
            labels_of(self._engine, self._scaler(self._data, None), self._model.spec)

    def seconds(self) -> float:
        """Seconds for the scene's own pixels."""
        patches = math.prod(self._plan.tiling.shape) / math.prod(self._plan.tiling.patch_hw)
        started = time.perf_counter()
        for _ in range(round(patches)):
            self._thread.run(self._patch)
        return (time.perf_counter() - started) * patches / round(patches)


def end_to_end(case: Case) -> tuple[float, float]:
    """(seconds, seconds of the inference stage) of the whole job into a fresh folder, without polygons."""
    shutil.rmtree(OUT / "speed", ignore_errors=True)
    started = time.perf_counter()
    result = sm.segment(case.scene, case.model, OUT / "speed", vectors="none", **case.options)
    return time.perf_counter() - started, result.summary["timings_s"]["infer"]


def gdal_copy(scene: Path) -> float:
    """Seconds of the same scene through GDAL's own COG driver."""
    target = OUT / "copy.tif"
    target.unlink(missing_ok=True)
    started = time.perf_counter()
    with rasterio.Env(GDAL_CACHEMAX=64 << 20):
        rasterio.shutil.copy(scene, target, driver="COG", compress="DEFLATE", num_threads="ALL_CPUS")
    return time.perf_counter() - started


def ratio(ours_s: float, floor_s: float) -> str:
    """For the table."""
    return f"**{ours_s / floor_s:.2f}** ({ours_s:.1f} s ÷ {floor_s:.1f} s)"


def measure(case: Case, repeats: int) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    """Rows of the table and the numbers behind them, for one network."""
    plan = sm.plan(case.scene, case.model, vectors="none", **case.options)
    bare = Bare(case, plan)
    medians = interleaved(repeats, bare=bare.seconds, segment=lambda: end_to_end(case))
    floor, (total, infer) = medians["bare"][0], medians["segment"]
    redundancy = plan.tiling.redundancy()
    patch, core = plan.tiling.patch_hw, (plan.tiling.rows.step, plan.tiling.cols.step)
    rows = [
        (f"{case.name}: end to end ÷ bare forward of the scene's pixels", ratio(total, floor), case.bar),
        (
            f"— inference stage ÷ bare forward over all patch pixels (× {redundancy:.3f})",
            ratio(infer, floor * redundancy),
            "≤ 1.08" if plan.engine.precision == "float32" else "",
        ),
        (f"— {plan.engine.backend}, patch {patch[0]} × {patch[1]}, core {core[0]} × {core[1]} px", "", ""),
    ]
    return rows, {"medians_s": medians, "plan": plan.summary()}


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--wide-size", type=int, default=4096)
    parser.add_argument("--null-size", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", default="3.5GB")
    given = parser.parse_args()
    scene, memory = scene_of(given.size), {"memory": given.memory}
    exact = {**memory, "precision": "float32"}
    cases = [
        Case(name=f"float32, width 16, {given.size}²", model=unet(), scene=scene, options=exact, bar="≤ 1.25"),
        Case(
            name=f"bfloat16, width 16, {given.size}²",
            model=unet(),
            scene=scene,
            options={**memory, "precision": "bfloat16"},
            bar="≤ 1.45",
        ),
        Case(
            name=f"float32, width 32, {given.wide_size}²",
            model=unet(width=32),
            scene=scene_of(given.wide_size),
            options=exact,
            bar="≤ 1.25 (at 8192²)",
        ),
    ]
    rows: list[tuple[str, str, str]] = []
    facts: dict[str, Any] = {}
    for case in cases:
        print(case.name, flush=True)
        made, facts[case.name] = measure(case, given.repeats)
        rows += made
    large = scene_of(given.null_size)
    null = Case(name="null model", model=null_model(), scene=large, options={}, bar="≤ 0.55")
    sm.plan(large, null.model)  # measured once per model; not part of a run
    medians = interleaved(given.repeats, copy=lambda: gdal_copy(large), segment=lambda: end_to_end(null))
    name = f"null model (1×1 convolution), {given.null_size}² 4-band uint16: end to end ÷ GDAL copy to COG"
    rows.append((name, ratio(medians["segment"][0], medians["copy"][0]), null.bar))
    facts["null model"] = medians
    options = f"--size {given.size} --wide-size {given.wide_size} --null-size {given.null_size}"
    command = f"make bench ({options} --repeats {given.repeats} --memory {given.memory})"
    publish("speed", "Speed: the whole job against its floors", command, rows, facts)


if __name__ == "__main__":
    main()
