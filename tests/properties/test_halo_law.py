"""The halo that is measured of a network: enough for tiles to equal one whole forward, and no stride more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from pipeline.grid import exact_tiling, round_up
from pipeline.model import ModelSpec, Scaling, load_model, model_from_module
from tests.networks import predict_by_tiles, random_scene, reader, unet_model, whole_forward

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BANDS, _CLASSES, _WIDTH = 2, 3, 2
_SLOPE = 0.5
"""Of the activation: no unit is ever dead."""
_SPEC = ModelSpec(
    name="drawn",
    bands=("b0", "b1"),
    classes=("c0", "c1", "c2"),
    scaling=Scaling(scale=(1.0,) * 2, offset=(0.0,) * 2, mean=(500.0,) * 2, std=(250.0,) * 2),
)


@dataclass(frozen=True, kw_only=True)
class _Conv:
    kernel: int
    dilation: int
    lean: int
    """-1 looks back only, 1 ahead only, 0 to both sides alike."""

    @property
    def back(self) -> int:
        """Pixels seen before its own."""
        return self.dilation * (self.kernel // 2) * (1 - self.lean)

    @property
    def ahead(self) -> int:
        return self.dilation * (self.kernel // 2) * (1 + self.lean)


@dataclass(frozen=True, kw_only=True)
class _Level:
    """Convolutions at one resolution, before what lies deeper and after it."""

    before: tuple[_Conv, ...]
    after: tuple[_Conv, ...]
    pool: str
    up: str
    skip: bool


class _Drawn(nn.Module):
    """What a list of levels describes, from the finest to the coarsest; each but the first halves the resolution."""

    def __init__(self, levels: list[_Level], ins: int) -> None:
        super().__init__()
        level, *deeper = levels
        self.before = _chain(level.before, ins)
        self.skip = level.skip
        self.deeper = nn.Sequential(_pool(level), _Drawn(deeper, _WIDTH), _up(level)) if deeper else None
        self.after = _chain(level.after, 2 * _WIDTH if deeper and level.skip else _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.deeper is not None:
            y = self.deeper(x)
            x = torch.cat([x, y], dim=1) if self.skip else y
        out: Tensor = self.after(x)
        return out


def _chain(convs: tuple[_Conv, ...], ins: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for conv in convs:
        layers.append(nn.ZeroPad2d((conv.back, conv.ahead, conv.back, conv.ahead)))
        layers += [nn.Conv2d(ins, _WIDTH, conv.kernel, dilation=conv.dilation), nn.LeakyReLU(_SLOPE)]
        ins = _WIDTH
    return nn.Sequential(*layers)


def _pool(level: _Level) -> nn.Module:
    return nn.MaxPool2d(2) if level.pool == "max" else nn.AvgPool2d(2)


def _up(level: _Level) -> nn.Module:
    return nn.ConvTranspose2d(_WIDTH, _WIDTH, 2, 2) if level.up == "transposed" else nn.Upsample(scale_factor=2)


def _network(levels: list[_Level], seed: int, data: NDArray[np.uint16]) -> nn.Module:
    """Random weights that keep signals as large as they are; outputs are those of a trained network, up to 8.

    On this very scene, mirrored as tiles see it: one drawn network gave 8 on noise and 90 there, where low bits are
    worth more than 1e-5.
    """
    torch.manual_seed(seed)
    head = nn.Conv2d(_WIDTH, _CLASSES, 1)
    network = nn.Sequential(_Drawn(levels, _BANDS), head).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                nn.init.zeros_(module.bias)
        values = ((data - _SPEC.scaling.mean[0]) / _SPEC.scaling.std[0]).astype(np.float32)
        mirrored = np.pad(values, ((0, 0), (64, 64), (64, 64)), mode="reflect")
        height, width = (side // 8 * 8 for side in mirrored.shape[1:])
        head.weight.div_(network(torch.from_numpy(mirrored[:, :height, :width])[None]).abs().max() / 8)
    return network


def _span(levels: list[_Level], first: int, last: int) -> tuple[int, int]:
    """First and last input row that the output rows `first` to `last` depend on, by arithmetic on indices alone."""
    level, *deeper = levels
    first, last = _seen(level.after, first, last)
    if deeper:
        coarse = _span(deeper, first // 2, last // 2)
        through = 2 * coarse[0], 2 * coarse[1] + 1
        first, last = (min(first, through[0]), max(last, through[1])) if level.skip else through
    return _seen(level.before, first, last)


def _seen(convs: tuple[_Conv, ...], first: int, last: int) -> tuple[int, int]:
    return first - sum(conv.back for conv in convs), last + sum(conv.ahead for conv in convs)


def _true_reach(levels: list[_Level], stride: int) -> int:
    first, last = _span(levels, 0, stride - 1)
    return max(-first, last - (stride - 1))


_CONV = st.builds(
    _Conv, kernel=st.sampled_from([1, 3, 5]), dilation=st.integers(1, 2), lean=st.sampled_from([0, 0, -1, 1])
)
_LEVEL = st.builds(
    _Level,
    before=st.lists(_CONV, min_size=1, max_size=2).map(tuple),
    after=st.lists(_CONV, min_size=1, max_size=2).map(tuple),
    pool=st.sampled_from(["max", "average"]),
    up=st.sampled_from(["transposed", "nearest"]),
    skip=st.booleans(),
)


@settings(max_examples=20, deadline=None)
@given(levels=st.lists(_LEVEL, min_size=1, max_size=4), seed=st.integers(0, 99), core=st.integers(16, 48))
def test_a_measured_halo_is_enough_and_no_stride_too_large(levels: list[_Level], seed: int, core: int) -> None:
    """A stack of convolutions, or poolings around it up to three deep, with skips or without."""
    stride, shape = 2 ** (len(levels) - 1), (75, 98)
    data = random_scene(_BANDS, shape, seed=seed)
    model = model_from_module(_network(levels, seed, data), _SPEC)
    traits = model.traits
    assert (traits.tiling, traits.stride) == ("exact", stride)
    assert traits.halo_px is not None
    reach = _true_reach(levels, stride)
    assert reach <= traits.halo_px < reach + stride

    tiling = exact_tiling(
        shape,
        core_hw=(core, core),
        halo_px=traits.halo_px,
        stride=stride,
        margin_px=0,
        sizes=traits.sizes,
        tile_px=64,
    )
    result = predict_by_tiles(model, tiling, reader(data))
    halo = traits.halo_px
    after = [round_up(side + 2 * halo, stride) - halo - side for side in shape]
    expected = whole_forward(model, data, before=halo, after_hw=(after[0], after[1]))
    assert result.probabilities is not None
    assert np.abs(result.probabilities - expected).max() <= 1e-5


_TRAINED = Path(__file__).resolve().parents[2] / "docs" / "models" / "banepa-buildings"
"""A plain U-Net of depth 4 and width 16 that has learned from real imagery."""


def _smooth_image(bands: int) -> Tensor:
    """Standardised values with structure of some pixels, `(1, band, 800, 800)`."""
    noise = np.random.default_rng(0).normal(size=(bands, 800, 800)).astype(np.float32)
    smooth = np.stack([ndimage.gaussian_filter(band, 3) for band in noise])
    return torch.from_numpy(smooth / smooth.std() + 0.3 * noise)[None]


def _share_wrong(network: nn.Module, *, bands: int, halo_px: int, origin: int) -> float:
    """Of 256² px from `origin` on: whose class a patch with this halo decides otherwise than the whole image."""
    x, rows, core = _smooth_image(bands), slice(origin, origin + 256), slice(halo_px, halo_px + 256)
    patch = slice(rows.start - halo_px, rows.stop + halo_px)
    with torch.inference_mode():
        whole, part = (_classes(network(pixels)) for pixels in (x, x[..., patch, patch]))
    return float((part[:, core, core] != whole[:, rows, rows]).float().mean())


def _classes(logits: Tensor) -> Tensor:
    return logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0] > 0


def test_a_trained_unet_is_exact_at_96_px_on_the_grid_of_its_stride_and_wrong_beside_it() -> None:
    """Measured: no pixel where patches begin at multiples of 16 px, 0.83 % one pixel off."""
    model = load_model(_TRAINED)
    assert (model.traits.halo_px, model.traits.stride) == (96, 16)
    shares = [_share_wrong(model.network, bands=3, halo_px=96, origin=origin) for origin in (256, 257)]
    assert shares[0] == 0.0
    assert 0.003 < shares[1] < 0.03


def test_up_sampling_by_corners_is_wrong_whatever_the_halo() -> None:
    """Its weights depend on the size of the patch: the probe sends it to blend mode, for this reason."""
    model = unet_model(depth=4, width=16, classes=4, upsampling="bilinear")
    for module in model.network.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = True
    assert _share_wrong(model.network, bands=2, halo_px=128, origin=256) > 0.003
    assert _share_wrong(model.network, bands=2, halo_px=256, origin=256) > 0.001
