"""`make bench-memory`: peak resident memory of `scenemask segment`, a process of its own, at several sizes.

python -m tests.bench.memory [--sizes 4096 16384] [--null-sizes 2048 4096 8192 16384 32768]

Growth is from 4096² to the largest.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.common import OUT, cpu, null_model, publish, scene_of, unet

if TYPE_CHECKING:
    from pipeline.model import Model

_CHILD = """
import pickle, sys
import pipeline as sm
if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        model = pickle.load(file)
    for run in range(int(sys.argv[5])):
        options = {"verify": int(sys.argv[4]), "probabilities": bool(int(sys.argv[6]))}
        sm.segment(sys.argv[2], model, f"{sys.argv[3]}/{run}", vectors="none", **options)
"""


def peak_bytes(
    model: Model, scene: Path, *, verify: int = 0, first_look: bool = False, runs: int = 1, probabilities: bool = False
) -> tuple[int, float]:
    """(peak resident bytes, seconds) of a fresh process that segments the scene.

    Args:
        model: The model.
        scene: The scene.
        verify: Windows to compute once more.
        first_look: With an empty cache, so that the network is measured first.
        runs: One after the other in that process.
        probabilities: Of all classes, into a file of their own.
    """
    shutil.rmtree(OUT / "memory", ignore_errors=True)
    recipe = OUT / "model.pickle"
    recipe.write_bytes(pickle.dumps(model))
    child = OUT / "child.py"
    child.write_text(_CHILD)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    if first_look:
        shutil.rmtree(OUT / "empty-cache", ignore_errors=True)
        environment["XDG_CACHE_HOME"] = str((OUT / "empty-cache").absolute())
    started = time.perf_counter()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, *map(str, (child, recipe, scene, OUT / "memory", verify, runs, int(probabilities)))],
        environment,
    )
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, f"the run failed with status {status}"
    return usage.ru_maxrss * 1024, time.perf_counter() - started


_GROWS_FROM = 4096
"""Below, a scene is done before all that a larger one needs is in memory."""


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--null-sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    options = parser.parse_args()
    rows, facts = [], {}
    cases = (
        ("width-16 4-class U-Net", unet(), options.sizes, "≤ 2 GB; within 10 %"),
        ("null model", null_model(), options.null_sizes, "flat within 10 %"),
        ("width-16 100-class U-Net", unet(classes=100), [4096, 8192], "≤ 2 GB; within 10 %"),
    )
    for name, model, sizes, bar in cases:
        peaks = {}
        for size in sizes:
            peaks[size], seconds = peak_bytes(model, scene_of(size))
            print(f"{name} {size}: {peaks[size] / 1e9:.3f} GB in {seconds:.0f} s", flush=True)
        text = ", ".join(f"{peak / 1e9:.2f} GB at {size}²" for size, peak in peaks.items())
        text += f" (**{peaks[sizes[-1]] / peaks[max(sizes[0], _GROWS_FROM)] - 1:+.1%}**)"
        rows.append((f"peak resident memory of `segment`, {name}", text, bar))
        facts[name] = peaks
    scene = scene_of(options.sizes[0])
    for name, extra in (
        ("`--verify 8`", {"verify": 8}),
        ("the first look at it and `--verify 8`", {"verify": 8, "first_look": True}),
        ("six runs one after the other in one process", {"runs": 6}),
    ):
        peak, _ = peak_bytes(unet(), scene, **extra)  # type: ignore[arg-type]
        rows.append((f"— with {name}, {options.sizes[0]}²", f"{peak / 1e9:.2f} GB", "≤ 2 GB"))
        facts[name] = {options.sizes[0]: peak}
    for name, size, extra in (("probabilities", 2048, {"probabilities": True}), ("verify 8", 4096, {"verify": 8})):
        peak, _ = peak_bytes(unet(classes=100), scene_of(size), **extra)  # type: ignore[arg-type]
        rows.append((f"— of 100 classes with `--{name}`, {size}²", f"{peak / 1e9:.2f} GB", "≤ 2 GB"))
        facts[f"{name} of 100 classes"] = {size: peak}
    sizes_text = " ".join(map(str, options.sizes))
    command = f"make bench-memory (--sizes {sizes_text})"
    publish("memory", "Memory: flat in the size of the scene", command, rows, facts, part=cpu())


if __name__ == "__main__":
    main()
