"""What is done to graphs changes how they are computed, and not what comes out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.model import UNet, UNetConfig
from pipeline.model.openvino_graph import sum_instead_of_join

openvino = pytest.importorskip("openvino", reason="openvino is an extra")

_BANDS = 3


class _Joined(nn.Module):
    """A convolution of branches that were joined; the join may serve somebody else too."""

    def __init__(self, channels: list[int], outputs: int, *, bias: bool, dilation: int, twice: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(_BANDS, count, 1) for count in channels)
        pads = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
        self.conv = nn.Conv2d(sum(channels), outputs, bias=bias, **pads)  # type: ignore[arg-type]
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([branch(x) for branch in self.branches], dim=1)
        found: Tensor = self.conv(joined).relu()
        return found + joined.mean(1, keepdim=True) if self.twice else found


def _graph(network: nn.Module, bands: int = _BANDS) -> Any:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        return openvino.convert_model(network.eval(), example_input=torch.zeros(1, bands, 32, 32))


def _joins(graph: Any) -> int:
    """Joins of images, shapes apart."""
    return sum(
        node.get_type_name() == "Concat" and node.get_output_element_type(0) == openvino.Type.f32
        for node in graph.get_ops()
    )


def _output(graph: Any, x: Tensor) -> np.ndarray[Any, Any]:
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(next(iter(compiled([x.numpy()]).values())))


@settings(deadline=None, max_examples=8)
@given(
    channels=st.lists(st.integers(2, 9), min_size=2, max_size=3),
    outputs=st.integers(1, 2),
    bias=st.booleans(),
    dilation=st.integers(1, 2),
)
def test_sums_give_what_the_join_gives(channels: list[int], outputs: int, *, bias: bool, dilation: int) -> None:
    torch.manual_seed(0)
    network = _Joined(channels, outputs, bias=bias, dilation=dilation, twice=False)
    x = torch.randn(1, _BANDS, 17, 23)
    with torch.inference_mode():
        expected = network(x).numpy()
    graph = sum_instead_of_join(_graph(network))
    assert _joins(graph) == 0
    np.testing.assert_allclose(_output(graph, x), expected, rtol=1e-4, atol=1e-5)


def test_a_unet_joins_nothing_any_more() -> None:
    network = UNet(UNetConfig(bands=_BANDS, outputs=2, depth=3, width=4))
    before, after = _graph(network), sum_instead_of_join(_graph(network))
    assert _joins(before) == 3
    assert _joins(after) == 0


@pytest.mark.parametrize(("outputs", "twice"), [(7, False), (2, True)])
def test_joins_that_serve_others_or_cost_less_stay(outputs: int, *, twice: bool) -> None:
    """Two sums of seven channels move more than a join of twelve; a join that is needed anyway is not made in vain."""
    network = _Joined([6, 6], outputs, bias=True, dilation=1, twice=twice)
    before, after = _graph(network), sum_instead_of_join(_graph(network))
    assert _joins(after) == 1
    assert len(after.get_ops()) == len(before.get_ops())
