"""What a graph leaves out is what nobody needs: the rest is what the whole network gives."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model import (
    EngineSpec,
    Model,
    UNet,
    UNetConfig,
    make_engine,
    model_from_module,
    num_left_out,
    openvino_trim,
)
from pipeline.model import openvino as engines
from pipeline.model.openvino_trim import crop_by_padding, leave_out
from tests.networks import ResNet34UNet, unet_model

if TYPE_CHECKING:
    from pathlib import Path

openvino = pytest.importorskip("openvino", reason="openvino is an extra")

_BANDS = 2


@dataclass(frozen=True)
class _Level:
    """How a network goes down one level and up again."""

    width: int
    kernel: int
    dilation: int
    down: str
    up: str
    join: str
    attention: bool
    norm: bool


class _Network(nn.Module):
    """An encoder-decoder of whatever others build them of."""

    def __init__(self, levels: list[_Level]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.levels = levels
        encoder, decoder, attention = [], [], []
        ins = _BANDS
        for level in levels:
            encoder.append(_conv(ins, level.width, level))
            ins = level.width
        for level in reversed(levels):
            outs = level.width
            up = _up(ins, outs, level.up)
            decoder.append(nn.ModuleList([up, _conv(2 * outs if level.join == "concat" else outs, outs, level)]))
            attention.append(nn.Conv2d(outs, outs, 1))
            ins = outs
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.attention = nn.ModuleList(attention)
        self.strided = nn.ModuleList(_down(level) for level in levels)
        self.head = nn.Conv2d(ins, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block, down in zip(self.encoder, self.strided, strict=True):
            x = block(x)
            skips.append(x)
            x = down(x)
        for (up, block), squeeze, level in zip(self.decoder, self.attention, reversed(self.levels), strict=True):
            x, skip = up(x), skips.pop()
            if level.join == "concat":
                x = torch.cat([skip, x], dim=1)
            elif level.join == "add":
                x = x + skip
            x = block(x)
            if level.attention:
                x = x * torch.sigmoid(squeeze(x.mean((2, 3), keepdim=True)))
        scores: Tensor = self.head(x)
        return scores.softmax(1)


def _conv(ins: int, outs: int, level: _Level) -> nn.Sequential:
    padding = (level.kernel - 1) // 2 * level.dilation
    conv = nn.Conv2d(ins, outs, level.kernel, padding=padding, dilation=level.dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(outs) if level.norm else nn.Identity(), nn.SiLU())


def _down(level: _Level) -> nn.Module:
    made: nn.Module = {
        "max": nn.MaxPool2d(2),
        "max3": nn.MaxPool2d(3, 2, 1),
        "average": nn.AvgPool2d(2),
        "conv": nn.Conv2d(level.width, level.width, 3, 2, 1),
        "conv5": nn.Conv2d(level.width, level.width, 5, 2, 2),
        "conv2": nn.Conv2d(level.width, level.width, 2, 2),
    }[level.down]
    return made


def _up(ins: int, outs: int, kind: str) -> nn.Module:
    if kind.startswith("transposed"):
        size = int(kind[-1])
        return nn.ConvTranspose2d(ins, outs, size, 2, (size - 2) // 2)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode=kind), nn.Conv2d(ins, outs, 1))


_LEVELS = st.builds(
    _Level,
    width=st.integers(2, 5),
    kernel=st.sampled_from([1, 3, 5]),
    dilation=st.sampled_from([1, 2]),
    down=st.sampled_from(["max", "max3", "average", "conv", "conv5", "conv2"]),
    up=st.sampled_from(["nearest", "bilinear", "bicubic", "transposed2", "transposed4"]),
    join=st.sampled_from(["concat", "add", "none"]),
    attention=st.sampled_from([False, False, False, True]),
    norm=st.booleans(),
)


def _graph(network: nn.Module, bands: int = _BANDS, side: int = 64) -> Any:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        graph = openvino.convert_model(network.eval(), example_input=torch.zeros(1, bands, side, side))
    graph.reshape([1, bands, -1, -1])
    return graph


def _output(graph: Any, x: Tensor) -> np.ndarray[Any, Any]:
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(next(iter(compiled([x.numpy()]).values())))


def _same_inside(network: nn.Module, trim: int, shape: tuple[int, int], bands: int = _BANDS) -> int:
    """Outputs left out; those that are wanted are compared with the whole network's."""
    graph = _graph(network, bands)
    left_out = leave_out(graph, trim)
    assert 0 <= left_out <= trim
    x = torch.randn(1, bands, *shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = network(x).numpy()
    kept = _output(graph, x)
    assert kept.shape[2:] == (shape[0] - 2 * left_out, shape[1] - 2 * left_out)
    at = trim - left_out
    inner = kept[..., at : kept.shape[2] - at, at : kept.shape[3] - at]
    np.testing.assert_allclose(inner, whole[..., trim : shape[0] - trim, trim : shape[1] - trim], atol=2e-5)
    return left_out


@settings(deadline=None, max_examples=10)
@given(levels=st.lists(_LEVELS, min_size=1, max_size=3), trim=st.integers(1, 40))
def test_what_is_kept_is_what_the_whole_network_gives(levels: list[_Level], trim: int) -> None:
    """Whatever it is built of, and where it looks at the whole image too."""
    _same_inside(_Network(levels), trim, (112, 96))


@pytest.mark.parametrize("trim", [544, 96, 47, 5])
def test_a_resnet_34_leaves_out_what_lies_in_the_halo(trim: int) -> None:
    """544 px is what it needs."""
    least = -(-2 * trim // 32) * 32
    left_out = _same_inside(ResNet34UNet(3, 4), trim, (least + 64, least + 96), bands=3)
    assert trim - left_out <= 4


def test_half_of_the_work_is_left_out() -> None:
    """Of a patch of 1600 px whose core is 512 px: the decoder's, and that of the deepest half of the encoder."""
    work = []
    for trim in (0, 544):
        graph = _graph(ResNet34UNet(3, 4, width=64), bands=3)
        leave_out(graph, trim)
        graph.reshape([1, 3, 1600, 1600])
        work.append(
            sum(
                np.prod(list(node.get_output_shape(0))) * np.prod(list(node.input_value(1).get_shape())[1:])
                for node in graph.get_ops()
                if node.get_type_name() == "Convolution"
            )
        )
    assert work[1] < 0.4 * work[0]


class _Sized(nn.Module):
    """Enlarges to the size of its input, whatever that is, by pixels' centres or by corners."""

    def __init__(self, *, align_corners: bool, by_size: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(_BANDS, 3, 3, 2, 1)
        self.how: dict[str, Any] = {"mode": "bilinear", "align_corners": align_corners}
        self.by_size = by_size

    def forward(self, x: Tensor) -> Tensor:
        size = {"size": x.shape[2:]} if self.by_size else {"scale_factor": 2.0}
        return functional.interpolate(self.conv(x), **size, **self.how)


@pytest.mark.parametrize(("align_corners", "by_size"), [(True, False), (False, True), (True, True)])
def test_enlargements_that_depend_on_the_size_are_left_whole(*, align_corners: bool, by_size: bool) -> None:
    assert _same_inside(_Sized(align_corners=align_corners, by_size=by_size), 16, (64, 96)) == 0


class _CutAndEnlarged(nn.Module):
    """A transposed convolution of what is cut."""

    def __init__(self, cut: tuple[slice, ...], size: int, step: int, **how: Any) -> None:
        super().__init__()
        self.cut = cut
        bands = len(range(_BANDS)[cut[1]])
        self.up = nn.ConvTranspose2d(bands, 4, size, step, **how)

    def forward(self, x: Tensor) -> Tensor:
        enlarged: Tensor = self.up(torch.relu(x)[self.cut])
        return enlarged


def _slices(graph: Any) -> int:
    return sum(node.get_type_name() == "Slice" for node in graph.get_ops())


_ALL = slice(None)
_RIMS = st.integers(0, 7)


@settings(deadline=None, max_examples=10)
@given(rims=st.tuples(_RIMS, _RIMS, _RIMS, _RIMS), step=st.integers(2, 3), how=st.data())
def test_a_cut_becomes_padding_of_what_enlarges(rims: tuple[int, ...], step: int, how: st.DataObject) -> None:
    top, bottom, left, right = rims
    cut = _ALL, _ALL, slice(top, -bottom or None), slice(left, -right or None)
    size = how.draw(st.integers(1, step))
    padding, extra = how.draw(st.integers(0, size - 1)), how.draw(st.integers(0, step - size))
    bias = how.draw(st.booleans())
    network = _CutAndEnlarged(cut, size, step, padding=padding, output_padding=extra, bias=bias)
    x = torch.randn(1, _BANDS, 23, 19)
    with torch.inference_mode():
        expected = network(x).numpy()
    graph = crop_by_padding(_graph(network))
    assert _slices(graph) == 0 or 0 in {bottom, right}  # without an end, what is cut follows from the size
    np.testing.assert_allclose(_output(graph, x), expected, rtol=1e-4, atol=1e-5)


_RIM = slice(3, -2)


@pytest.mark.parametrize(
    ("cut", "size", "step", "extra"),
    [
        ((_ALL, _ALL, _RIM, _RIM), 4, 2, 0),  # a pixel beyond the cut would be added to what is kept
        ((_ALL, _ALL, _RIM, _RIM), 2, 2, 1),  # and here to the outputs that are nobody's
        ((_ALL, _ALL, _RIM, _RIM), 1, 1, 0),
        ((_ALL, slice(0, -1), _ALL, _ALL), 2, 2, 0),
        ((_ALL, _ALL, _RIM, slice(3, 12)), 2, 2, 0),
        ((_ALL, _ALL, _RIM, slice(3, -2, 2)), 2, 2, 0),
    ],
)
def test_other_cuts_stay(cut: tuple[slice, ...], size: int, step: int, extra: int) -> None:
    network = _CutAndEnlarged(cut, size, step, output_padding=extra)
    x = torch.randn(1, _BANDS, 23, 19)
    graph = crop_by_padding(_graph(network))
    assert _slices(graph) == 1
    with torch.inference_mode():
        np.testing.assert_allclose(_output(graph, x), network(x).numpy(), rtol=1e-4, atol=1e-5)


class _AlongRows(nn.Module):
    """A transposed convolution of another rank."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(_BANDS, _BANDS, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        row: Tensor = self.up(x[:, :, 0, 2:-2])
        return x + row.mean()


def test_other_ranks_are_left_alone() -> None:
    network, x = _AlongRows(), torch.randn(1, _BANDS, 16, 16)
    graph = crop_by_padding(_graph(network))
    with torch.inference_mode():
        np.testing.assert_allclose(_output(graph, x), network(x).numpy(), rtol=1e-4, atol=1e-5)


def test_our_unet_enlarges_without_a_copy() -> None:
    model = unet_model(depth=3, classes=3)
    graph = engines.read_graph(model.network, bands=len(model.spec.bands), key=None, trim_px=48)
    enlarging = [node for node in graph.get_ordered_ops() if node.get_type_name() == "ConvolutionBackpropData"]
    assert [node.input_value(0).get_node().get_type_name() for node in enlarging] == ["Relu"] * 3
    assert [list(node.get_attributes()["pads_begin"]) for node in enlarging] == [[8, 8], [4, 4], [6, 6]]


_TWO_LEVELS = [_Level(4, 3, 1, "max3", "nearest", "concat", attention=False, norm=True)] * 2


def _foreign(network: nn.Module) -> Model:
    spec = unet_model(depth=2, classes=3).spec
    model = model_from_module(network, spec, digest="of no importance")
    assert model.traits.halo_px is not None
    return model


def _spec(trim_px: int, backend: Any = "openvino") -> EngineSpec:
    return EngineSpec(backend=backend, device="cpu", precision="float32", threads=2, one_size=True, trim_px=trim_px)


def test_engines_tell_what_they_leave_out_and_remember_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = _foreign(_Network(_TWO_LEVELS))
    left_out = num_left_out(model, _spec(64), budget_bytes=10**10)
    assert 60 <= left_out <= 64
    x = torch.randn(1, _BANDS, 256, 320)
    assert make_engine(model, _spec(64)).run(x).shape[2:] == (256 - 2 * left_out, 320 - 2 * left_out)
    monkeypatch.setattr(engines, "_compare_trimmed", lambda *_: pytest.fail("it was known"))
    assert num_left_out(model, _spec(64), budget_bytes=10**10) == left_out
    assert num_left_out(model, _spec(0), budget_bytes=10**10) == 0  # there is nothing to compare
    assert num_left_out(model, _spec(64), budget_bytes=10**5) == 0
    assert num_left_out(model, _spec(64, "torch"), budget_bytes=10**10) == 0
    own = unet_model(depth=2)
    assert num_left_out(own, _spec(24, "torch"), budget_bytes=0) == 22


def test_a_graph_that_keeps_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should an operation not be what we take it for, the comparison finds it."""
    model = _foreign(_Network(_TWO_LEVELS))
    uncached = Model(spec=model.spec, network=model.network, digest="unknown", cacheable=False)
    assert num_left_out(uncached, _spec(64), budget_bytes=10**10) > 0
    honest = openvino_trim._window
    # A convolution that was no wider than a pixel would need none of the pixels around it.
    blind = lambda node: (found := honest(node)) and found._replace(looks_at=lambda px: px * found.step)  # noqa: E731
    monkeypatch.setattr(openvino_trim, "_window", blind)
    assert num_left_out(uncached, _spec(64), budget_bytes=10**10) == 0


def test_networks_without_padding_are_left_whole() -> None:
    network = UNet(UNetConfig(bands=_BANDS, outputs=3, depth=1, width=4, padding="valid")).eval()
    assert num_left_out(_foreign(network), _spec(16), budget_bytes=10**10) == 0
