"""Which library and which precision `auto` takes, and how the difference of precisions is counted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import pipeline as sm
from pipeline.infer import device_thread
from pipeline.model import EngineSpec, ModelSpec, Scaling, model_from_module, openvino
from pipeline.run import choose as choose_module
from pipeline.run.choose import measure_flips
from pipeline.run.scene_samples import sample_blocks
from tests.scenes import save_threshold_model, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.commands import Cli


@pytest.fixture(autouse=True)
def _without_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds and bytes of a forward come after the choice, and take longer than all of these tests."""
    monkeypatch.setattr("pipeline.run.basis.measured_cost", lambda *_, **__: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network in `model`, and scenes of one value: a large one, and the largest and a usual small one."""
    made = tmp_path_factory.mktemp("choose")
    save_threshold_model(made / "model", bands=1)
    for shape in ((1000, 3000), (1000, 2999), (600, 600)):
        data = np.full((1, *shape), 600, np.uint16)
        write_scene(made / f"{shape[0]}x{shape[1]}.tif", data, names=("b0",), compress="deflate")
    return made


def _plan(cli: Cli, folder: Path, name: str, *options: object) -> dict[str, Any]:
    status, out, err = cli(
        "plan", folder / f"{name}.tif", "-m", folder / "model", "--device", "cpu", "--json", *options
    )
    assert status == 0, err
    plan: dict[str, Any] = json.loads(out)
    return plan


@pytest.mark.skipif(not openvino.available(), reason="OpenVINO is not installed")
def test_auto_takes_openvino_from_3_mpx_up(cli: Cli, folder: Path) -> None:
    large = _plan(cli, folder, "1000x3000", "--precision", "float32")
    assert (large["backend"], large["precision"]) == ("openvino", "float32")
    assert "OpenVINO, checked against PyTorch" in large["engine_reason"]
    for name in ("1000x2999", "600x600"):
        small = _plan(cli, folder, name, "--precision", "float32")
        assert small["backend"] == "torch", name
        assert "too small for OpenVINO to pay" in small["engine_reason"]


def test_a_small_scene_takes_openvino_where_it_is_asked_for_and_a_large_one_pytorch(cli: Cli, folder: Path) -> None:
    if openvino.available():
        assert _plan(cli, folder, "600x600", "--backend", "openvino")["backend"] == "openvino"
    assert _plan(cli, folder, "1000x3000", "--backend", "torch", "--precision", "float32")["backend"] == "torch"


@pytest.mark.parametrize(
    ("most", "precision"), [(None, "float32"), (0.0029, "float32"), (0.003, "bfloat16"), (0.5, "bfloat16")]
)
def test_max_flip_decides_between_the_precisions(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, most: float | None, precision: str
) -> None:
    """0.3 % of the sampled pixels change their class; 0.2 % are allowed unless more are."""
    monkeypatch.setattr(choose_module, "has_fast_bfloat16", lambda _device: True)
    monkeypatch.setattr(choose_module, "measure_flips", lambda *_: 0.003)
    options = [] if most is None else ["--max-flip", most]
    plan = _plan(cli, folder, "1000x3000", "--backend", "torch", *options)
    assert (plan["precision"], plan["flips_frac"]) == (precision, 0.003)
    assert "changes the class of 0.300% of sampled pixels" in plan["engine_reason"]


@pytest.mark.parametrize(("fast", "name"), [(False, "1000x3000"), (True, "600x600")])
def test_bfloat16_is_not_tried_where_it_cannot_pay(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, fast: bool
) -> None:
    monkeypatch.setattr(choose_module, "has_fast_bfloat16", lambda _device: fast)
    monkeypatch.setattr(choose_module, "measure_flips", lambda *_: pytest.fail("measured"))
    plan = _plan(cli, folder, name, "--backend", "torch", "--max-flip", 1)
    assert (plan["precision"], plan["flips_frac"]) == ("float32", None)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the upper half of their bits, to even on a tie."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


LEVELS = np.float32([601.0, 601.5])
"""What a value of 0 is compared at: apart in float32, equal in bfloat16."""


def _comparing(padding: int) -> sm.Model:
    """Class 0 where value + 601 is at least 601.5, by a 3 x 3 convolution that looks at its middle only."""
    conv = nn.Conv2d(1, 2, 3, padding=padding)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
        conv.bias.copy_(torch.from_numpy(LEVELS))  # type: ignore[union-attr]
    # Pixels that are not valid become 0, whose class differs: they must not be counted.
    scaling = Scaling(scale=(1.0,), offset=(0.0,), mean=(100.0,), std=(1.0,))
    return model_from_module(
        nn.Sequential(conv), ModelSpec(name="m", bands=("b",), classes=("a", "b"), scaling=scaling)
    )


@pytest.mark.parametrize("padding", [1, 0])
def test_d13_flips_are_those_that_numpy_counts(tmp_path: Path, padding: int) -> None:
    data = np.random.default_rng(0).integers(80, 120, (1, 200, 900), dtype=np.uint16)
    data[:, :, :500] //= 4  # nothing near the threshold there, so that windows differ
    data[:, 100:180, 300:700] = 0
    scene = sm.open_scene(write_scene(tmp_path / "s.tif", data, nodata=0))
    model = _comparing(padding)
    margin = 1 - padding
    assert model.traits.margin_px == margin

    differing = total = 0
    inner = slice(margin, 200 - margin)
    for values, valid in sample_blocks(scene, 200):
        x = values[0, inner, inner].astype(np.float32) - 100
        exact = x + LEVELS[0] < LEVELS[1]
        fast = _bfloat16(_bfloat16(x) + _bfloat16(LEVELS)[0]) < _bfloat16(LEVELS)[1]
        differing += int(((exact != fast) & valid[inner, inner]).sum())
        total += int(valid[inner, inner].sum())
    assert 0.01 < differing / total < 0.2

    spec = EngineSpec(backend="torch", device="cpu", precision="float32", threads=2, one_size=True)
    found = measure_flips(scene, model, spec, "bfloat16", device_thread(threads=2))
    assert found == pytest.approx(differing / total, rel=1e-12)
    assert measure_flips(scene, model, spec, "float32", device_thread(threads=2)) == 0


def test_d13_without_a_valid_pixel_there_are_no_flips_to_count(tmp_path: Path) -> None:
    scene = sm.open_scene(write_scene(tmp_path / "s.tif", np.zeros((1, 64, 64), np.uint16), nodata=0))
    spec = EngineSpec(backend="torch", device="cpu", precision="float32", threads=2, one_size=True)
    assert measure_flips(scene, _comparing(1), spec, "bfloat16", device_thread(threads=2)) is None
