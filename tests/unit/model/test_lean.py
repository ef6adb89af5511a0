"""Networks with less work: the same outputs, in the precision that was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.model import EngineSpec, make_engine
from pipeline.model.lean import ConvReLU, fuse_relu, lean, widened
from tests.networks import unet_model


@pytest.mark.parametrize(("norm", "itself"), [("batch", True), ("none", True), ("group", False), ("instance", False)])
def test_convolutions_compute_in_low_precision_and_norms_are_left_to_autocast(norm: str, *, itself: bool) -> None:
    network = unet_model(depth=2, norm=norm).network
    made = lean(network, device="cpu", dtype=torch.bfloat16)
    assert made.computes_itself == itself
    kinds = {parameter.dtype for parameter in made.network.parameters()}
    assert kinds == {torch.bfloat16 if itself else torch.float32}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert lean(network, device="cpu", dtype=torch.float32).computes_itself


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_low_precision_stays_near(norm: str) -> None:
    model = unet_model(depth=2, width=8, norm=norm)
    spec = EngineSpec(backend="torch", device="cpu", precision="bfloat16", threads=2, one_size=True)
    x = torch.randn(1, 2, 64, 96)
    with torch.inference_mode():
        difference = (make_engine(model, spec).run(x) - model.network(x)).abs()
    assert 0 < float(difference.max()) < 0.5


def test_a_convolution_and_its_relu_become_one() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Identity(), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Dropout2d())
    fused = fuse_relu(nn.Sequential(layers, nn.Conv2d(8, 2, 1)))
    kinds = [type(module).__name__ for module in fused.modules() if not isinstance(module, nn.Sequential)]
    assert kinds == ["ConvReLU", "Identity", "Identity", "Conv2d", "Dropout2d", "Conv2d"]
    assert isinstance(layers[0], ConvReLU)


def test_bands_are_rounded_up() -> None:
    assert [widened(n, 8) for n in (1, 4, 8, 9, 13)] == [8, 8, 8, 16, 16]
    assert widened(5, 1) == 5
