"""`make bench-evaluate`: CPU time and peak resident memory of `scenemask evaluate` on a pair of large rasters.

python -m tests.bench.evaluate [--size 30000]

TRUTH is the class map of a synthetic scene of 2048 px, mirrored again and again; PRED is the same with its borders
smoothed and blots of other classes. Both are tiled and compressed, so that decoding is part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from rasterio.windows import Window
from scipy import ndimage

from pipeline.grid import iter_windows
from pipeline.scene.synthetic import SYNTHETIC_LEGEND
from pipeline.store.cog import LEGEND_TAG, legend_json
from tests.bench.common import OUT, publish, scene_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_STEP_PX = 2048
_CHILD = """
import atexit, re, sys
from pathlib import Path
from pipeline.cli import main

def tell():  # not `ru_maxrss`: that of the process that started this one counts in it
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    Path(told).write_text(peak[1])

told = sys.argv.pop(1)
atexit.register(tell)
main()
"""


def make_pair(size: int) -> tuple[Path, Path]:
    """PRED and TRUTH of this size, made once."""
    paths = OUT / f"pred-{size}.tif", OUT / f"truth-{size}.tif"
    if all(path.exists() for path in paths):
        return paths
    with rasterio.open(scene_of(_STEP_PX).with_name("truth.tif")) as file:
        truth, profile = file.read(1), file.profile
    rng = np.random.default_rng(0)
    blots = ndimage.gaussian_filter(rng.normal(size=truth.shape), 6)
    pred = np.where(blots > 2.2 * blots.std(), 1, ndimage.median_filter(truth, 5)).astype(np.uint8)
    pred[truth == profile["nodata"]] = profile["nodata"]
    profile.update(height=size, width=size, compress="deflate", tiled=True, blockxsize=512, blockysize=512)
    for path, base in zip(paths, (pred, truth), strict=True):
        with rasterio.open(path, "w", **profile) as file:
            file.update_tags(**{LEGEND_TAG: legend_json(SYNTHETIC_LEGEND)})
            for window in iter_windows((size, size), (_STEP_PX, _STEP_PX)):
                rows, cols = window.row_off // _STEP_PX % 2, window.col_off // _STEP_PX % 2
                block: NDArray[np.uint8] = base[:: -1 if rows else 1, :: -1 if cols else 1]
                place = Window(window.col_off, window.row_off, window.width, window.height)
                file.write(np.ascontiguousarray(block[: window.height, : window.width]), 1, window=place)
    return paths


def measure(arguments: Sequence[object]) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of a process of its own."""
    told = OUT / "peak.txt"
    command = [sys.executable, "-c", _CHILD, str(told), "evaluate", *map(str, arguments)]
    pid = os.posix_spawn(sys.executable, command, {**os.environ, "PYTHONPATH": str(Path.cwd())})
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, f"evaluate failed with status {status}"
    return usage.ru_utime + usage.ru_stime, int(told.read_text()) * 1024


def decoding(paths: Sequence[Path], size: int) -> float:
    """CPU seconds that reading both rasters takes, and nothing else."""
    started = time.process_time()
    for path in paths:
        with rasterio.open(path) as file:
            for window in iter_windows((size, size), (_STEP_PX, _STEP_PX)):
                file.read(1, window=Window(window.col_off, window.row_off, window.width, window.height))
    return time.process_time() - started


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=30_000)
    size = parser.parse_args().size
    OUT.mkdir(exist_ok=True)
    pred, truth = make_pair(size)
    report = OUT / "evaluation.json"
    bare = decoding((pred, truth), size)
    cases = {
        "confusion matrix, map of errors, report and plots": (),
        "— and boundary scores at 2 px, objects of one class, 1000 draws of blocks of 512 px": (
            "--boundary", "2 px", "--objects", "building", "--bootstrap", "1000", "--block-px", "512",
        ),
    }  # fmt: skip
    rows, facts = [], {"decoding_s": bare}
    for name, extra in cases.items():
        seconds, peak = measure([pred, truth, "-o", report, "--overwrite", "-q", *extra])
        rows.append(
            (name, f"{seconds:.0f} s of CPU ({seconds / bare:.1f} × decoding alone), **{peak / 1e9:.2f} GB**", "≤ 1 GB")
        )
        facts[name] = {"cpu_s": seconds, "peak_bytes": peak}
        print(rows[-1], flush=True)
    told = json.loads(report.read_text())
    of = told["objects"][0]
    title = f"Evaluation of a {size}² pair, {len(told['classes'])} classes, {of['truth']:,} objects in TRUTH"
    publish("evaluate", title, f"make bench-evaluate (--size {size})", rows, facts)


if __name__ == "__main__":
    main()
