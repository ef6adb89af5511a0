"""Training against the bare forward and backward passes of the same batches: is data made fast enough?

    python -m tests.bench.train

Both in one process, in turns, medians of several. The bare loop gets batches that were made before; what training adds
are chips, their changes, the learning rate and listeners. Looks at the validation part and checkpoints are left out of
both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.model import UNet, UNetConfig
from pipeline.scene import write_synthetic_scene
from pipeline.train import StepDone
from pipeline.train.chips import ChipPlaces
from pipeline.train.events import TrainEvent
from pipeline.train.loader import Batch, BatchMaker
from pipeline.train.loop import autocast_of, train
from pipeline.train.losses import segmentation_loss
from tests.bench.common import interleaved, publish
from tests.experiments.learning import Prepared, prepare

STEPS = 24
WARM = 4
CASES: dict[str, dict[str, Any]] = {
    "flips and turns": {},
    "all changes": {
        "rotate_deg": 45, "scale": 0.25, "elastic_px": 5, "brightness": 0.3, "contrast": 0.3, "band_drop": 0.1,
    },
}  # fmt: skip


def main() -> None:
    """Measure and write docs/benchmarks/train.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    folder = Path("bench-out") / "train"
    made = write_synthetic_scene(folder, size_px=2048, seed=0)
    document: dict[str, Any] = {
        "name": "bench",
        "classes": [c.name for c in made.legend],
        "scenes": [{"scene": str(made.scene_path), "labels": str(made.truth_path)}],
        "split": {"areas": str(made.split_path)},
    }
    data = prepare(document)
    rows, facts = [], {}
    for width in (16, 32):
        for name, augment in CASES.items():
            bare, whole = _pair(data, width, augment, given.repeats)
            what = f"width {width}, {name}: bare forward and backward / training ({bare:.3f} / {whole:.3f} s per step)"
            rows.append((what, f"**{bare / whole:.2f}**", "0.80"))
            facts[f"{width} {name}"] = {"bare_s": bare, "training_s": whole}
    publish(
        "train",
        "Training: chips of 192 px, batches of 8, U-Net of depth 4, precision auto",
        f"python -m tests.bench.train --repeats {given.repeats}",
        rows,
        facts,
    )


def _pair(data: Prepared, width: int, augment: dict[str, Any], repeats: int) -> tuple[float, float]:
    settings = data.settings(
        network={"depth": 4, "width": width},
        chips={"size": 192, "batch": 8},
        augment=augment,
        schedule={"steps": STEPS, "check_every": 10_000},
    )
    places = ChipPlaces(data.split["train"], data.found.places, settings.chips, settings.seed)
    batches = BatchMaker(data.views, places, data.scaling, settings)
    made = [batches.make(step) for step in range(4)]  # also fills the cache of blocks
    seconds = interleaved(repeats, bare=lambda: _bare(settings, made), training=lambda: _whole(data, settings, batches))
    return seconds["bare"][0], seconds["training"][0]


def _network(settings: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(bands=4, outputs=5, depth=4, width=settings.network.width))


def _bare(settings: Any, batches: list[Batch]) -> float:
    network = _network(settings).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters())
    autocast = autocast_of(settings, "cpu")
    times = []
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            logits = network(batch.x)
        loss = segmentation_loss(logits.float(), batch.target, settings.loss)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        times.append(time.perf_counter() - started)
    return sum(times[WARM:]) / (STEPS - WARM)


def _whole(data: Prepared, settings: Any, batches: BatchMaker) -> float:
    times: list[float] = []

    def hear(event: TrainEvent) -> None:
        if isinstance(event, StepDone):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        train(_network(settings), batches, data.found, (), Path(folder), listener=hear)
    return (times[-1] - times[WARM - 1]) / (STEPS - WARM)


if __name__ == "__main__":
    main()
