"""The decision in OpenVINO's graph: PyTorch's labels, and never all classes of a large patch at once."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.model import NOT_FINITE, ModelSpec, Scaling, decide_output, openvino_labels
from pipeline.model.openvino_labels import with_labels

openvino = pytest.importorskip("openvino", reason="openvino is an extra")

_BANDS = 3
_SMALL_HW = 16, 16


class _Net(nn.Module):
    """Features, a head of 1 x 1 or more, and what follows it."""

    def __init__(self, features: int, outputs: int, *, kernel: int = 1, stride: int = 1, after: str = "") -> None:
        super().__init__()
        self.features = nn.Conv2d(_BANDS, features, 3, padding=1)
        self.head = nn.Conv2d(features, outputs, kernel, stride, padding=kernel // 2)
        self.after = after
        self.register_buffer("rows", torch.linspace(1, 2, _SMALL_HW[0])[:, None])

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.features(x))
        if self.after == "per row":
            return made * self.rows
        if self.after == "softmax":
            return made.softmax(dim=1)
        if self.after == "softmax along rows":
            return made.softmax(dim=2)
        return (made * 2 + 1).sigmoid() if self.after == "sigmoid" else made


def _spec(classes: int, *, multilabel: bool = False) -> ModelSpec:
    return ModelSpec(
        name="many",
        bands=("a", "b", "c"),
        classes=tuple(f"c{i}" for i in range(classes)),
        scaling=Scaling.identity(_BANDS),
        activation="sigmoid" if multilabel else "softmax",
        multilabel=multilabel,
    )


def _graph(network: nn.Module, side_hw: tuple[int, int] | None) -> Any:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        graph = openvino.convert_model(network.eval(), example_input=torch.zeros(1, _BANDS, *_SMALL_HW))
    graph.reshape([1, _BANDS, *(side_hw or (-1, -1))])
    return graph


def _strips(graph: Any) -> int:
    return sum(node.get_type_name() == "TopK" for node in graph.get_ops())


def _labels(graph: Any, x: Tensor) -> np.ndarray[Any, Any]:
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(next(iter(compiled([x.numpy()]).values())))[0]


@settings(deadline=None, max_examples=12)
@given(
    features=st.integers(1, 6),
    more=st.integers(1, 9),
    side_hw=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    strip_rows=st.integers(1, 7),
    after=st.sampled_from(["", "softmax", "sigmoid"]),
    multilabel=st.booleans(),
)
def test_strips_give_the_labels_of_the_whole(
    features: int, more: int, side_hw: tuple[int, int], strip_rows: int, after: str, *, multilabel: bool
) -> None:
    torch.manual_seed(features)
    network, spec = _Net(features, features + more, after=after), _spec(features + more, multilabel=multilabel)
    x = torch.randn(1, _BANDS, *side_hw)
    x[0, 0, side_hw[0] // 2, side_hw[1] // 2] = math.nan
    whole = _labels(with_labels(_graph(network, side_hw), spec), x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_labels, "_STRIP_BYTES", 4 * (features + more) * side_hw[1] * strip_rows)
        graph = with_labels(_graph(network, side_hw), spec)
    if not multilabel:
        assert _strips(graph) == -(-side_hw[0] // strip_rows)
    in_strips = _labels(graph, x)
    np.testing.assert_array_equal(in_strips, whole)
    with torch.inference_mode():
        output = network(x)[0]
    finite = torch.isfinite(output).all(dim=0).numpy()
    assert (in_strips[..., ~finite] == NOT_FINITE).all()
    assert not finite.all()
    # One class that is clearly ahead, or each clearly on one side: not a matter of the last bit.
    cut = 0.0 if multilabel else output.topk(2, dim=0).values[1]
    clear = ((output if multilabel else output.amax(0)) - cut).abs().gt(1e-4).numpy() & finite
    expected = decide_output(output, spec).numpy()
    np.testing.assert_array_equal((in_strips if multilabel else in_strips[0])[clear], expected[clear])


def test_no_step_holds_all_classes_of_a_large_patch() -> None:
    graph = with_labels(_graph(_Net(8, 200), (1024, 1024)), _spec(200))
    largest = max(
        math.prod(output.get_shape()) * 4
        for node in graph.get_ops()
        for output in node.outputs()
        if node.get_type_name() not in {"Parameter", "Constant"}
    )
    assert largest <= 8 * 1024 * 1024 * 4, "no more than the features that classes are made of"


@pytest.mark.parametrize(
    ("network", "side_hw", "strips"),
    [
        (_Net(8, 20), _SMALL_HW, 16),
        (_Net(8, 20, kernel=3), _SMALL_HW, 1),
        (_Net(8, 20, stride=2), _SMALL_HW, 1),
        (_Net(20, 20), _SMALL_HW, 1),
        (_Net(8, 20, after="per row"), _SMALL_HW, 1),
        (_Net(8, 20, after="softmax along rows"), _SMALL_HW, 1),
        (_Net(8, 20), None, 1),
    ],
    ids=["strips", "sees neighbours", "strides", "widens not", "differs by row", "rows depend", "open size"],
)
def test_what_is_not_of_each_pixel_alone_or_widens_nothing_stays_whole(
    network: nn.Module, side_hw: tuple[int, int] | None, strips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_labels, "_STRIP_BYTES", 1)
    assert _strips(with_labels(_graph(network, side_hw), _spec(20))) == strips


def test_few_strips_for_a_patch_as_large_as_they_get() -> None:
    graph = with_labels(_graph(_Net(8, 254), (2048, 2048)), _spec(254))
    assert _strips(graph) == openvino_labels._MOST_STRIPS
