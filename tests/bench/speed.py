"""`make bench`: the whole job against its floors, in one run, as ratios.

python -m tests.bench.speed [--size 8192] [--null-size 16384] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import rasterio.shutil
import torch

import pipeline as sm
from pipeline.grid import Window, iter_windows
from pipeline.infer.network_input import scale
from pipeline.scene import open_scene
from tests.bench.common import OUT, interleaved, null_model, publish, scene_of, unet

if TYPE_CHECKING:
    from pipeline.model import Model
    from pipeline.run.segment import RunResult


def bare_forward(model: Model, scene_path: Path, patch_px: int) -> None:
    """The network alone over the scene's own pixels: no halo, no reading between forwards, nothing kept.

    One patch of real pixels is given again and again, as often as the scene holds patches of that size.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    network = model.prepare(torch.device("cpu"))
    scene = open_scene(scene_path)
    height, width = scene.geobox.shape
    patch_px = min(patch_px, height, width)
    row, col = (height - patch_px) // 2 // 16 * 16, (width - patch_px) // 2 // 16 * 16
    block = scene.read_block(Window(row_off=row, col_off=col, height=patch_px, width=patch_px))
    data = torch.from_numpy(np.ascontiguousarray(block.data))
    with torch.inference_mode():
        for part in iter_windows((height, width), (patch_px, patch_px)):
            rows, cols = -(-part.height // 16) * 16, -(-part.width // 16) * 16
            network(scale(data[:, :rows, :cols], None, model.spec.scaling)).argmax(dim=1).to(torch.uint8)


def end_to_end(model: Model, scene: Path, name: str) -> RunResult:
    """The whole job into a fresh folder, without polygons."""
    shutil.rmtree(OUT / name, ignore_errors=True)
    return sm.segment(scene, model, OUT / name, vectors="none")


def gdal_copy(scene: Path) -> None:
    """The same scene through GDAL's own COG driver."""
    target = OUT / "copy.tif"
    target.unlink(missing_ok=True)
    with rasterio.Env(GDAL_CACHEMAX=64 << 20):
        rasterio.shutil.copy(scene, target, driver="COG", compress="DEFLATE", num_threads="ALL_CPUS")


def ratio(ours_s: float, floor_s: float) -> str:
    """For the table."""
    return f"**{ours_s / floor_s:.2f}** ({ours_s:.1f} s ÷ {floor_s:.1f} s)"


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--null-size", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    network, null = unet(), null_model()
    scene, large = scene_of(options.size), scene_of(options.null_size)
    plan = sm.plan(scene, network)
    patch = plan.tiling.patch_hw[0]
    stages: list[float] = []

    def segment_unet() -> None:
        stages.append(end_to_end(network, scene, "unet").summary["timings_s"]["infer"])

    main_times = interleaved(options.repeats, bare=lambda: bare_forward(network, scene, patch), segment=segment_unet)
    null_times = interleaved(
        options.repeats, copy=lambda: gdal_copy(large), segment=lambda: end_to_end(null, large, "null")
    )
    infer = sorted(stages)[len(stages) // 2]
    all_patches = main_times["bare"] * plan.tiling.redundancy()
    rows = [
        (
            f"float32, width 16, {options.size}²: end to end ÷ bare forward of the scene's pixels",
            ratio(main_times["segment"], main_times["bare"]),
            "≤ 1.25",
        ),
        (
            f"inference stage ÷ bare forward over all patch pixels (× {plan.tiling.redundancy():.3f})",
            ratio(infer, all_patches),
            "≤ 1.08",
        ),
        (
            f"null model (1×1 convolution), {options.null_size}² 4-band uint16: end to end ÷ GDAL copy to COG",
            ratio(null_times["segment"], null_times["copy"]),
            "≤ 0.55",
        ),
        ("patch, core, halo", f"{patch} px, {plan.tiling.rows.step} px, {plan.tiling.halo_px} px", ""),
    ]
    facts = {"unet": main_times, "null": null_times, "infer_stage_s": infer, "plan": plan.summary()}
    command = f"make bench (--size {options.size} --null-size {options.null_size} --repeats {options.repeats})"
    publish("speed", "Speed: the whole job against its floors", command, rows, facts)


if __name__ == "__main__":
    main()
