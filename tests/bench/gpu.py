"""A GPU run against its floors: the bare forward, and decoding the scene on all cores.

python -m tests.bench.gpu [--width 64] [--size 16384] [--repeats 3] [--memory 24GB]
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from rasterio.windows import Window as RasterioWindow

import pipeline as sm
from pipeline.grid import Window, iter_windows
from pipeline.infer import Scaler, device_thread, resident_bytes
from pipeline.model import EngineSpec, make_engine
from pipeline.scene import open_scene, write_synthetic_scene
from tests.bench.common import OUT, interleaved, publish, unet

if TYPE_CHECKING:
    from pipeline.model import Model
    from pipeline.run.plan import Plan

_PIECE = 2048


def large_scene(size_px: int) -> Path:
    """A synthetic scene repeated over a large one: as hard to decode, made in seconds."""
    path = OUT / f"repeated-{size_px}.tif"
    if path.exists():
        return path
    piece = OUT / f"scene-{_PIECE}"
    write_synthetic_scene(piece, size_px=_PIECE)
    with rasterio.open(piece / "scene.tif") as small:
        data, profile = small.read(), small.profile
        profile |= {"width": size_px, "height": size_px, "predictor": 2, "num_threads": "ALL_CPUS"}
        with rasterio.open(path, "w", **profile) as large:
            large.descriptions = small.descriptions
            for row in range(0, size_px, _PIECE):
                for col in range(0, size_px, _PIECE):
                    large.write(data, window=RasterioWindow(col, row, _PIECE, _PIECE))
    return path


def bare_forward(model: Model, plan: Plan, data: torch.Tensor, *, trim: bool, patches: int) -> float:
    """Seconds of the network alone over patches of the plan's size: values on the GPU already, labels left there."""
    spec: EngineSpec = plan.engine if trim else plan.engine.untrimmed
    thread, scaler = device_thread(threads=spec.threads), Scaler(model.spec.scaling)

    def work() -> float:
        engine = make_engine(model, spec)
        engine.prepare((1, *data.shape), labels=True)
        stored = data.cuda()
        for number in range(patches + 3):
            if number == 3:
                torch.cuda.synchronize()
                started = time.perf_counter()
            with torch.inference_mode():
                engine.label(scaler(stored, None))
        torch.cuda.synchronize()
        return time.perf_counter() - started

    return thread.run(work)


def decode(path: Path) -> float:
    """Seconds of reading the whole scene on all cores."""
    scene = open_scene(path)
    windows = [Window(row_off=w.row_off, col_off=w.col_off, height=w.height, width=w.width)
               for w in iter_windows(scene.geobox.shape, (1024, 1024))]  # fmt: skip
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(scene.read, windows[: os.cpu_count()]))  # open datasets, warm caches
        started = time.perf_counter()
        for _ in pool.map(scene.read, windows):
            pass
        return time.perf_counter() - started


def end_to_end(path: Path, model: Model, options: dict[str, Any]) -> tuple[float, float]:
    """(seconds, seconds of scene on disk to last shard)."""
    shutil.rmtree(OUT / "gpu", ignore_errors=True)
    started = time.perf_counter()
    result = sm.segment(path, model, OUT / "gpu", vectors="none", **options)
    seconds = time.perf_counter() - started
    print(result.summary["timings_s"], flush=True)
    return seconds, result.summary["timings_s"]["infer"]


def mask_copy() -> float:
    """Seconds of GDAL's copy of the mask to COG."""
    started = time.perf_counter()
    with rasterio.Env(GDAL_CACHEMAX=256 << 20):
        rasterio.shutil.copy(
            OUT / "gpu" / "mask.tif",
            OUT / "mask-copy.tif",
            driver="COG",
            compress="DEFLATE",
            level=5,
            num_threads="ALL_CPUS",
        )
    return time.perf_counter() - started


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", default="24GB")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--patch", type=int)
    given = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    path, model = large_scene(given.size), unet(width=given.width)
    options: dict[str, Any] = {"device": "cuda", "precision": given.precision, "memory": given.memory}
    if given.patch:
        options["patch"] = given.patch
    plan = sm.plan(path, model, vectors="none", **options)
    print(plan.summary(), flush=True)
    height, width = plan.tiling.patch_hw
    scene = open_scene(path)
    block = scene.read_block(Window(row_off=0, col_off=0, height=height, width=width))
    data = torch.from_numpy(np.array(block.data))
    patches = plan.tiling.num_patches
    end_to_end(path, model, options)  # the disk's cache, kernels that are loaded once
    medians = interleaved(
        given.repeats,
        bare=lambda: bare_forward(model, plan, data, trim=False, patches=patches),
        forwards=lambda: bare_forward(model, plan, data, trim=True, patches=patches),
        decode=lambda: decode(path),
        segment=lambda: end_to_end(path, model, options),
        mask_copy=mask_copy,
    )
    bare, forwards, read = medians["bare"][0], medians["forwards"][0], medians["decode"][0]
    (total, infer), copy = medians["segment"], medians["mask_copy"][0]
    floor = max(bare, read)
    name = "forwards" if bare >= read else "decoding"
    mpx = given.size**2 / 1e6
    what = f"{given.precision}, width {given.width}, {given.size}²"
    rows = [
        (
            f"{what}: scene on disk → last shard ÷ max(bare forward over patch pixels, decoding); limit: {name}",
            f"**{infer / floor:.2f}** ({infer:.2f} s ÷ {floor:.2f} s)",
            "≤ 1.15",
        ),
        (
            "— end to end ÷ (that + GDAL copy of the mask to COG)",
            f"**{total / (infer + copy):.2f}** ({total:.2f} s ÷ {infer + copy:.2f} s)",
            "≤ 1.10",
        ),
        ("— bare forward over all patch pixels", f"{bare:.2f} s", ""),
        ("— its own forwards, which leave outputs in the halo out", f"{forwards:.2f} s", ""),
        ("— decoding on all cores", f"{read:.2f} s", ""),
        ("— end to end", f"{total:.2f} s, {mpx / total:.0f} Mpx/s; inference {mpx / infer:.0f} Mpx/s", ""),
        ("— memory of the process", f"{resident_bytes() / 1e9:.2f} GB", ""),
        ("— memory of the GPU", f"{torch.cuda.max_memory_reserved() / 1e9:.1f} GB", ""),
        (f"— patch {height} × {width}, {patches} patches, {plan.in_flight} tiles in flight", "", ""),
    ]  # fmt: skip
    command = f"python -m tests.bench.gpu --width {given.width} --size {given.size} --repeats {given.repeats}"
    publish(
        "gpu",
        "GPU: the whole job against its floors",
        command + f" --memory {given.memory} --precision {given.precision}",
        rows,
        {"medians_s": medians, "plan": plan.summary(), "pixels": math.prod(plan.tiling.shape)},
        part=what,
    )


if __name__ == "__main__":
    main()
