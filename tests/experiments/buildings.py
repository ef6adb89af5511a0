"""A U-Net on real buildings against simpler ways: `make experiment-buildings` writes docs/benchmarks/buildings.md.

The U-Net of configs/train/banepa-buildings.yaml, the same without skip connections, and two classifiers that see one
pixel at a time, on the same bands, the same training part and the same pixels of the test part. Models that are there
already (bench-out/buildings) are scored, not trained again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pipeline as sm
from pipeline.model import UNet
from pipeline.train import StepDone, read_train_settings, train_model
from pipeline.train.events import TrainEvent
from pipeline.train.target import IGNORE
from tests.bench.common import publish
from tests.experiments.datasets import buildings
from tests.experiments.learning import Prepared, predict, prepare, score, truth_of

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train" / "banepa-buildings.yaml"
NAMES = ("background", "building")
SAMPLES = 200_000
OUT = Path("bench-out") / "buildings"


def main() -> None:
    """Train what is missing, score all, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = prepare(buildings(Path()))
    truth = truth_of(data)
    rows, facts = [], {}
    scored: dict[str, tuple[NDArray[np.uint8], float]] = {
        "all building": (np.ones_like(truth), 0.0),
        **_per_pixel(data),
        **{name: _network(data, folder, given.threads) for name, folder in
           (("U-Net without skips", "no-skips"), ("U-Net", "u-net"))},
    }  # fmt: skip
    for name, (mask, seconds) in scored.items():
        found = score(mask, truth, NAMES)
        bar = "≥ 0.72; first in both" if name == "U-Net" else "–"
        text = f"IoU **{found['iou']:.3f}**, boundary F1 **{found['bf1']:.3f}**"
        rows.append((f"{name} (trained in {seconds / 60:.1f} min)" if seconds else name, text, bar))
        facts[name] = {**found, "seconds": seconds}
    publish(
        "buildings",
        "Buildings of Banepa: test part, 0.3 m, class building; boundary within 2 px",
        f"python -m tests.experiments.buildings --threads {given.threads}",
        rows,
        facts,
    )


def _network(data: Prepared, folder: str, threads: int) -> tuple[NDArray[np.uint8], float]:
    scene = data.settings().scenes[0]
    changes = [
        f"scenes.0.scene={scene.scene}",
        f"scenes.0.labels={scene.labels}",
        f"split.areas={data.settings().split.areas}",
        f"network.skips={str(folder == 'u-net').lower()}",
        f"threads={threads}",
    ]

    def hear(event: TrainEvent) -> None:
        if isinstance(event, StepDone) and event.step % 100 == 0:
            print(f"  {folder}: step {event.step}, loss {event.loss:.3f}", flush=True)

    made = train_model(read_train_settings(CONFIG, changes), OUT / folder, listener=hear)
    network = sm.load_model(OUT / folder).network
    assert isinstance(network, UNet)
    return predict(data, network), made.training["seconds"]


def _per_pixel(data: Prepared) -> dict[str, tuple[NDArray[np.uint8], float]]:
    (area,) = data.split["train"]
    sample = data.views[0].read(area.window)
    pixels, target = sample.data.reshape(3, -1).T, sample.target.ravel()
    known = np.flatnonzero(target != IGNORE)
    chosen = np.random.default_rng(0).choice(known, SAMPLES, replace=False)
    test = data.views[0].read(data.test).data.reshape(3, -1).T
    results = {}
    classifiers: dict[str, Any] = {
        "logistic regression of a pixel": make_pipeline(StandardScaler(), LogisticRegression()),
        "random forest of a pixel, 100 trees": RandomForestClassifier(100, min_samples_leaf=20, random_state=0),
    }
    for name, classifier in classifiers.items():
        started = time.monotonic()
        classifier.fit(pixels[chosen], target[chosen])
        seconds = time.monotonic() - started
        mask = classifier.predict(test).astype(np.uint8).reshape(data.test.shape)
        results[name] = (mask, seconds)
    return results


if __name__ == "__main__":
    main()
