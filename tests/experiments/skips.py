"""What skip connections are worth with few labels: `make experiment-skips` writes docs/skip-connections.md.

A U-Net and the same network without its skips learn from 1, 2, 4, … labelled chips of three scenes, with several seeds,
and are scored on parts that none has learnt from. Rows are kept in a CSV, so that a cut-off run goes on.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.experiments.datasets import DATASETS, REAL_DATA
from tests.experiments.learning import Prepared, learn, predict, prepare, score, truth_of
from tests.experiments.skips_report import write_report

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROWS = DOCS / "benchmarks" / "skip-connections.csv"
CHIPS = (1, 2, 4, 8, 16, 32, 64)
CHIP_PX = 96
STEPS = 400
FIELDS = ("data", "method", "chips", "seed", "mean_iou", "iou", "mean_bf1", "bf1", "seconds")
FOREST_PIXELS = 20_000


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only-report", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.data:
        if given.only_report or (name == "buildings" and not REAL_DATA.is_dir()):
            continue
        _run(name, range(given.seeds), given.threads)
    write_report(ROWS, DOCS)


def _run(name: str, seeds: range, threads: int) -> None:
    data = prepare(DATASETS[name](Path("bench-out") / "experiments" / name))
    truth = truth_of(data)
    done = {(row["method"], int(row["chips"]), int(row["seed"])) for row in _rows() if row["data"] == name}
    names = tuple(data.settings().class_names)
    for chips in CHIPS:
        for seed in seeds:
            for method in ("u-net", "no skips"):
                if (method, chips, seed) in done:
                    continue
                started = time.monotonic()
                network = learn(data, _settings(data, method, chips, seed, threads))
                scores = score(predict(data, network), truth, names)
                _keep(name, method, chips, seed, scores, time.monotonic() - started)
                if name == "coast" and method == "u-net" and chips == CHIPS[-1]:
                    _keep_importance(name, data, network, truth, seed, names)
    if name == "coast" and ("ndwi", 0, 0) not in done:
        _keep(name, "ndwi", 0, 0, score(_ndwi(data), truth, names), 0.0)


def _settings(data: Prepared, method: str, chips: int, seed: int, threads: int) -> Any:
    return data.settings(
        chips={"size": CHIP_PX, "batch": 4, "limit": chips, "sampling": "random"},
        network={"depth": 4, "width": 8, "skips": method == "u-net"},
        augment={"flips": True, "turns": True, "brightness": 0.1, "contrast": 0.1},
        schedule={"steps": STEPS, "check_every": STEPS, "learning_rate": 5e-3},
        precision="auto",
        threads=threads,
        seed=seed,
    )


def _ndwi(data: Prepared) -> Any:
    """Water where the normalised difference of green and near infrared is above 0 (McFeeters 1996)."""
    pixels = data.views[0].read(data.test).data
    green, nir = pixels[1], pixels[3]
    return (green > nir).astype(np.uint8)


def _keep_importance(name: str, data: Prepared, network: Any, truth: Any, seed: int, names: tuple[str, ...]) -> None:
    """What is lost when a band's values are exchanged between places (Breiman 2001, permutation importance)."""
    for band, info in enumerate(data.views[0].scene.bands):
        scores = score(predict(data, network, shuffled_band=band), truth, names)
        _keep(name, f"without {info.name}", CHIPS[-1], seed, scores, 0.0)


def _rows() -> list[dict[str, str]]:
    if not ROWS.exists():
        return []
    with ROWS.open() as file:
        return list(csv.DictReader(file))


def _keep(name: str, method: str, chips: int, seed: int, scores: dict[str, float], seconds: float) -> None:
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    new = not ROWS.exists()
    with ROWS.open("a", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if new:
            rows.writerow(FIELDS)
        rows.writerow([name, method, chips, seed, *(f"{scores[key]:.4f}" for key in FIELDS[4:8]), f"{seconds:.1f}"])
    print(f"{name:11} {method:10} {chips:3} chips, seed {seed}: IoU {scores['mean_iou']:.3f}, "
          f"boundary F1 {scores['mean_bf1']:.3f}, {seconds:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
