"""What the benchmarks share: scenes, a network of the size that the figures name, and tables for docs/benchmarks/."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.model import ModelSpec, Scaling, UNet, UNetConfig, model_from_module, save_model
from pipeline.run.doctor import versions
from pipeline.scene import write_synthetic_scene
from tests.networks import ResNet34UNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.model import Model

OUT = Path("bench-out")
DOCS = Path("docs/benchmarks")
BANDS = ("blue", "green", "red", "nir")


def scene_of(size_px: int) -> Path:
    """The synthetic scene of this size, made once."""
    folder = OUT / f"scene-{size_px}"
    if not (folder / "scene.tif").exists():
        write_synthetic_scene(folder, size_px=size_px)
    return folder / "scene.tif"


def unet(*, width: int = 16, classes: int = 4) -> Model:
    """A depth-4 U-Net with random weights: the time of a forward does not depend on what was learned.

    Its batch statistics are those of noise, so that every layer counts and all classes occur, as when trained.
    """
    torch.manual_seed(0)
    network = _fed_with_noise(UNet(UNetConfig(bands=4, outputs=classes, width=width, depth=4)))
    return save_model(OUT / f"unet-{width}-{classes}", network, _spec(f"unet-{width}", classes))


def trained_unet() -> Path:
    """The folder of a depth-4 U-Net of width 16 that has learned the classes of the synthetic scenes, made once.

    Where precision is chosen by what it does to the classes, random weights do not tell: they hardly prefer one.
    """
    from pipeline.scene.synthetic import SYNTHETIC_LEGEND  # not before: peers import this module too
    from pipeline.train import make_train_settings, train_model

    scene = scene_of(_LEARNED_PX)
    document = {
        "name": "bench-land-cover",
        "classes": [{"name": info.name, "background": info.background} for info in SYNTHETIC_LEGEND],
        "scenes": [{"scene": str(scene), "labels": str(scene.with_name("truth.tif"))}],
        "split": {"areas": str(scene.with_name("split.gpkg"))},
        "chips": {"size": 192, "batch": 8, "sampling": "balanced"},
        "network": {"depth": 4, "width": 16},
        "schedule": {"steps": 300, "learning_rate": 6.0e-3, "check_every": 100},
    }
    return train_model(make_train_settings(document), OUT / "trained-16").folder


_LEARNED_PX = 2048


def resnet() -> Model:
    """A U-Net with a ResNet-34 encoder, width 64, as a module handed over in Python; its halo is 544 px."""
    network = _fed_with_noise(ResNet34UNet(4, 4, width=64))
    return model_from_module(network, _spec("resnet34", 4), digest="ResNet-34 U-Net of width 64, seed 0")


def _fed_with_noise(network: torch.nn.Module) -> torch.nn.Module:
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the average over what it sees
    with torch.no_grad():
        network.train()(torch.randn(2, 4, 256, 256))
    return network.eval()


def null_model(classes: int = 4) -> Model:
    """One 1x1 convolution: everything but the network."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(4, classes, 1)
    # Vouched for, so that it is measured once, as a model in a folder is.
    return model_from_module(network, _spec("null", classes), digest=f"null model of {classes} classes, seed 0")


def _spec(name: str, classes: int) -> ModelSpec:
    scaling = Scaling(scale=(1.0,) * 4, offset=(0.0,) * 4, mean=(1000.0,) * 4, std=(800.0,) * 4)
    return ModelSpec(name=name, bands=BANDS, classes=tuple(f"c{i}" for i in range(classes)), scaling=scaling)


def interleaved(repeats: int, **work: Callable[[], float | tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """Median of the seconds that each function returns; one round runs all of them, so that drift hits all alike."""
    return {name: tuple(map(float, np.median(values, axis=0))) for name, values in rounds(repeats, **work).items()}


def rounds(repeats: int, **work: Callable[[], float | tuple[float, ...]]) -> dict[str, NDArray[np.float64]]:
    """Seconds that each function returns, `(round, value)`; one round runs all of them."""
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in work}
    for number in range(repeats):
        for name, function in work.items():
            found = function()
            seconds[name].append(found if isinstance(found, tuple) else (found,))
            print(f"  round {number + 1}/{repeats}  {name}: {seconds[name][-1][0]:.2f} s", flush=True)
    return {name: np.array(values) for name, values in seconds.items()}


def publish(
    name: str, title: str, command: str, rows: list[tuple[str, str, str]], facts: dict[str, Any], *, part: str = ""
) -> None:
    """A table and the raw numbers under docs/benchmarks/.

    Args:
        name: Of the files.
        title: Of the page.
        command: What repeats the measurement.
        rows: What, measured, bar.
        facts: Raw numbers, as JSON values.
        part: Name of a part of the page, measured in a run of its own; the other parts stay.
    """
    DOCS.mkdir(parents=True, exist_ok=True)
    raw = DOCS / f"{name}.json"
    known = json.loads(raw.read_text()) if part and raw.exists() else {}
    parts = {**known.get("parts", {}), part: _part(command, rows, facts)}
    lines = [f"# {title}", "", "Only ratios of one run mean anything.", ""]
    for one in parts.values():
        lines += [f"`{one['command']}`, {one['date']}. {one['machine']}.", one["software"], ""]
        lines += ["| what | measured | bar |", "|---|---|---|"]
        lines += [f"| {what} | {got} | {bar} |" for what, got, bar in one["rows"]] + [""]
    (DOCS / f"{name}.md").write_text("\n".join(lines))
    raw.write_text(json.dumps({"parts": parts}, indent=1) + "\n")
    print("\n".join(lines))


def _part(command: str, rows: list[tuple[str, str, str]], facts: dict[str, Any]) -> dict[str, Any]:
    capability = torch.backends.cpu.get_cpu_capability()
    used = versions()
    return {
        "command": command,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": ", ".join([cpu(), f"{os.cpu_count()} cores", platform.system(), _device(), capability]),
        "software": f"Python {used['python']}, PyTorch {used['torch']}, rasterio {used['rasterio']}.",
        "rows": rows,
        "facts": facts,
        "versions": used,
    }


def cpu() -> str:
    """The processor's name."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else "?"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
