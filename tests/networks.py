"""Networks and scenes in memory that several tests share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.infer import Predictor, TileResult, device_thread
from pipeline.model import (
    EngineSpec,
    Model,
    ModelSpec,
    Scaling,
    UNet,
    UNetConfig,
    model_from_module,
    to_probabilities,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.grid import Tiling, Window


@dataclass(frozen=True)
class MemoryBlock:
    """Stands in for a scene's block."""

    data: NDArray[Any]
    valid: NDArray[np.bool_]
    all_valid: bool


def reader(data: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Callable[[Window], MemoryBlock]:
    """Reads windows of an array `(band, y, x)`; refuses windows outside it, as a raster would."""
    usable = np.ones(data.shape, bool) if valid is None else np.broadcast_to(valid, data.shape)

    def read(window: Window) -> MemoryBlock:
        assert window.row_off >= 0
        assert window.col_off >= 0
        assert window.row_stop <= data.shape[1]
        assert window.col_stop <= data.shape[2]
        rows = slice(window.row_off, window.row_stop)
        cols = slice(window.col_off, window.col_stop)
        part = usable[:, rows, cols]
        return MemoryBlock(data[:, rows, cols], part, bool(part.all()))

    return read


def unet_model(*, seed: int = 0, classes: int = 3, **config: Any) -> Model:
    """A U-Net with random weights and the batch statistics of random input: every layer counts, as when trained."""
    torch.manual_seed(seed)
    network = UNet(UNetConfig(**{"bands": 2, "outputs": classes, "width": 4, "depth": 2, **config}))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # average over what it sees, starting from nothing
    x = torch.randn(2, network.config.bands, _calibration_side(network), _calibration_side(network))
    with torch.no_grad():
        network.train()(x)
        network.head.weight.div_(network.eval()(x).abs().max() / 8.0)  # logits as large as a trained network's
    bands = tuple(f"b{i}" for i in range(network.config.bands))
    scaling = Scaling(
        scale=(1.0,) * len(bands), offset=(0.0,) * len(bands), mean=(500.0,) * len(bands), std=(250.0,) * len(bands)
    )
    names = tuple(f"c{i}" for i in range(classes))
    return model_from_module(network, ModelSpec(name="test", bands=bands, classes=names, scaling=scaling))


def multilabel_model(threshold: float | tuple[float, ...] = 0.5, *, classes: int = 3, **config: Any) -> Model:
    """The same with a threshold for each class."""
    made = unet_model(classes=classes, **config)
    changes = {"activation": "sigmoid", "multilabel": True, "threshold": threshold}
    spec = ModelSpec.model_validate({**made.spec.model_dump(), **changes})
    return model_from_module(made.network, spec)


def _calibration_side(network: UNet) -> int:
    """A side that the poolings divide, for either padding."""
    return 316 if network.config.padding == "valid" else 256


def random_scene(bands: int, shape: tuple[int, int], *, seed: int = 0) -> NDArray[np.uint16]:
    """Stored values `(band, y, x)`, uint16."""
    return np.random.default_rng(seed).integers(0, 1000, (bands, *shape), dtype=np.uint16)


def predictor(model: Model, tiling: Tiling, **options: Any) -> Predictor:
    """A float32 CPU predictor; `backend`, `device`, `precision`, `trim_px` as in `EngineSpec`."""
    engine = EngineSpec(
        backend=options.pop("backend", "torch"),
        device=options.pop("device", "cpu"),
        precision=options.pop("precision", "float32"),
        threads=2,
        one_size=tiling.one_size,
        trim_px=options.pop("trim_px", 0),
    )
    settings = {"padding": "reflect", "taper": "hann", **options}
    return Predictor(model, tiling, engine=engine, thread=device_thread(threads=2), **settings)


def predict_by_tiles(model: Model, tiling: Tiling, read: Callable[[Window], Any], **options: Any) -> TileResult:
    """Mask and probabilities of the whole scene, tile by tile."""
    engine = predictor(model, tiling, **options)
    legend = model.spec.legend()
    mask = np.full(legend.mask_shape(tiling.shape), legend.nodata, legend.dtype)
    probabilities = np.full((len(legend), *tiling.shape), np.nan, np.float32)
    patches = 0
    for tile in tiling.tiles():
        result = engine.predict(read, tile.core, probabilities=True)
        rows, cols = slice(tile.core.row_off, tile.core.row_stop), slice(tile.core.col_off, tile.core.col_stop)
        mask[..., rows, cols] = result.mask
        assert result.probabilities is not None
        probabilities[:, rows, cols] = result.probabilities
        patches += result.patches
    return TileResult(mask=mask, probabilities=probabilities, patches=patches)


def whole_forward(model: Model, data: NDArray[Any], *, before: int, after_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Probabilities `(class, y, x)` of one forward over the scene, mirrored by NumPy, not by our own index maps."""
    pad = ((0, 0), (before, after_hw[0]), (before, after_hw[1]))
    mean, std = model.spec.scaling.mean[0], model.spec.scaling.std[0]
    x = torch.from_numpy(np.pad((data.astype(np.float32) - mean) / std, pad, mode="reflect").astype(np.float32))
    with torch.inference_mode():
        p = to_probabilities(model.network(x[None])[0], model.spec)
    offset = before - model.traits.margin_px
    height, width = data.shape[1:]
    return p[:, offset : offset + height, offset : offset + width].numpy()


class _Residual(nn.Module):
    """A basic block (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs))
        self.short = nn.Identity() if (ins, stride) == (outs, 1) else nn.Conv2d(ins, outs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.short(x))


class ResNet34UNet(nn.Module):
    """A ResNet-34 encoder with a U-Net decoder; narrow, for the reach does not depend on the width."""

    def __init__(self, bands: int, classes: int, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stem = nn.Sequential(nn.Conv2d(bands, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        layers = []
        for level, blocks in enumerate((3, 4, 6, 3)):
            ins, outs = widths[level], widths[level + 1]
            first = _Residual(ins, outs, 1 if level == 0 else 2)
            layers.append(nn.Sequential(first, *(_Residual(outs, outs, 1) for _ in range(blocks - 1))))
        self.layers = nn.ModuleList(layers)
        skips = [*reversed(widths[:4]), 0]
        ins = widths[4]
        decoder = []
        for skip, outs in zip(skips, (4 * width, 2 * width, width, width, width), strict=True):
            convs: list[nn.Module] = []
            for channels in (ins + skip, outs):
                convs += [nn.Conv2d(channels, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()]
            decoder.append(nn.Sequential(*convs))
            ins = outs
        self.decoder = nn.ModuleList(decoder)
        self.head = nn.Conv2d(width, classes, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.stem(x)]
        x = self.pool(skips[0])
        for layer in self.layers:
            x = layer(x)
            skips.append(x)
        skips.pop()
        for block in self.decoder:
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skips.pop()], dim=1) if skips else x)
        logits: Tensor = self.head(x)
        return logits
