"""The U-Net: an encoder learns what is there, skip connections bring back where.

Source: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597, with what practice added since: padding that keeps the
size, batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167), interpolated up-sampling. Logits come out.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

CONFIG_KEY = "scenemask:unet"
"""Name of a U-Net's configuration in the metadata of weights."""
Norm = Literal["batch", "group", "instance", "none"]
Upsampling = Literal["transposed", "bilinear", "nearest"]


class UNetConfig(BaseModel):
    """Everything that decides the shape of a U-Net's weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bands: int = Field(ge=1)
    """Input bands."""
    outputs: int = Field(ge=1)
    """Output channels: one per class, or 1 for a single probability."""
    depth: int = Field(default=4, ge=1, le=7)
    """Poolings; the output stride is 2**depth."""
    width: int = Field(default=16, ge=1)
    """Channels of the first level; doubled at each level."""
    norm: Norm = "batch"
    """Normalisation after each convolution. `group` and `instance` look at the whole patch: never exact."""
    upsampling: Upsampling = "transposed"
    """How the decoder doubles its resolution."""
    padding: Literal["same", "valid"] = "same"
    """`valid` is the published network: borders are dropped, skips are cropped (572 -> 388 at depth 4)."""
    skips: bool = True
    """Skip connections; False leaves an encoder-decoder, for comparison."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability at the bottleneck, in training only."""


class UNet(nn.Module):
    """Input `(batch, band, y, x)` float32 -> logits `(batch, class, y', x')`.

    `same` padding: y' = y, a multiple of 2**depth. `valid` padding: y' = y - 2 * margin.

    Raises:
        ValueError: A side that the poolings do not divide; the message names the nearest sides that work.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        ins = [config.bands, *widths[:-1]]
        self.encoder = nn.ModuleList(_double_conv(i, o, config) for i, o in zip(ins[:-1], widths[:-1], strict=True))
        self.bottleneck = _double_conv(ins[-1], widths[-1], config)
        self.dropout = nn.Dropout2d(config.dropout)
        upward = list(reversed(widths))
        self.up = nn.ModuleList(_upsample(i, o, config) for i, o in itertools.pairwise(upward))
        factor = 2 if config.skips else 1
        self.decoder = nn.ModuleList(_double_conv(factor * o, o, config) for o in upward[1:])
        self.head = nn.Conv2d(config.width, config.outputs, kernel_size=1)
        self.register_state_dict_post_hook(_note_config)  # type: ignore[no-untyped-call]

    @property
    def can_trim(self) -> bool:
        """Whether outputs depend on their surroundings only, so that those not needed may be left out."""
        return self.config.padding == "same" and self.config.norm in {"batch", "none"}

    def forward(self, x: Tensor, trim_px: int = 0) -> Tensor:
        """Logits for a batch.

        Args:
            x: `(batch, band, y, x)` float32.
            trim_px: Outputs closer than this to the patch's rim are not wanted: the decoder, where most of the work
                is, computes only what the others depend on. A multiple of the output stride.

        Returns:
            `(batch, class, y', x')`, of `same` padding y' = y - 2 * left_out(trim_px): the middle of what comes out
            untrimmed, right from `trim_px` on.
        """
        logits: Tensor = self.head(self.features(x, trim_px))
        return logits

    def features(self, x: Tensor, trim_px: int = 0) -> Tensor:
        """What the head turns into logits, pixel by pixel: `(batch, width, y', x')`; see `forward`."""
        skips: list[Tensor] = []
        for block in self.encoder:  # (batch, width * 2**level, y / 2**level, x / 2**level)
            x = block(x)
            skips.append(x)
            _check_even(x, self.config)
            x = functional.max_pool2d(x, kernel_size=2)
        x = self.dropout(self.bottleneck(x))
        starts = self._starts(trim_px)
        for up, block, start in zip(self.up, self.decoder, starts, strict=True):
            x = _cut(up(_cut(x, start.input)), start.upsampled)
            skip = _cut(skips.pop(), start.skip)
            if self.config.skips:
                x = torch.cat([_crop_like(skip, x), x], dim=1)
            x = block(x)
        return x

    def left_out(self, trim_px: int) -> int:
        """Outputs that are missing on each side, at most `trim_px`: cutting the last two costs more than they do."""
        return self._starts(trim_px)[-1].skip

    def _starts(self, trim_px: int) -> list[_Cuts]:
        """What each step of the decoder leaves out on every side, deepest first."""
        reach = 1 if self.config.upsampling == "bilinear" else 0
        wanted, levels = trim_px, []
        for _ in range(self.config.depth):
            block = max(0, wanted - _BLOCK_REACH) // 2 * 2  # even: where a pixel of the level below begins
            below = max(0, block // 2 - reach)
            levels.append((block, below))
            wanted = below
        begins = [block for block, _ in levels[1:]] + [0]  # where the output of the level below begins
        return [
            _Cuts(input=below - begin, upsampled=block - 2 * below, skip=block)
            for (block, below), begin in zip(reversed(levels), reversed(begins), strict=True)
        ]


class Trimmed(nn.Module):
    """A U-Net that does not compute what a tile does not keep."""

    def __init__(self, network: UNet, trim_px: int) -> None:
        super().__init__()
        self.network = network
        self.trim_px = trim_px

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the middle of a batch."""
        logits: Tensor = self.network(x, self.trim_px)
        return logits


_BLOCK_REACH = 2
"""How far two 3x3 convolutions see; closer to a cut their outputs are wrong."""


class _Cuts(NamedTuple):
    """Pixels left out on each side at one level of the decoder."""

    input: int
    """Of what comes up from below, before it is up-sampled."""
    upsampled: int
    """Of that, once up-sampled."""
    skip: int
    """Of the skip connection: here the level begins."""


def _cut(x: Tensor, px: int) -> Tensor:
    """Without its outermost pixels."""
    return x[..., px:-px, px:-px] if px else x


def _note_config(network: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """Leave the configuration in a state dict's metadata: its tensors do not tell everything apart."""
    del state, prefix
    assert isinstance(network, UNet)
    local_metadata[CONFIG_KEY] = network.config.model_dump_json()


def _double_conv(in_channels: int, out_channels: int, config: UNetConfig) -> nn.Sequential:
    padding = 1 if config.padding == "same" else 0
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(nn.Conv2d(channels, out_channels, kernel_size=3, padding=padding, bias=config.norm == "none"))
        layers.extend(_norm(out_channels, config.norm))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _norm(channels: int, kind: Norm) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    if kind == "group":
        return [nn.GroupNorm(min(8, channels), channels)]
    if kind == "instance":
        return [nn.InstanceNorm2d(channels, affine=True)]
    return []


def _upsample(in_channels: int, out_channels: int, config: UNetConfig) -> nn.Module:
    if config.upsampling == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
    # align_corners=False: the weights then depend on the phase only, so tiles can equal the whole scene.
    align = False if config.upsampling == "bilinear" else None
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=config.upsampling, align_corners=align),
        nn.Conv2d(in_channels, out_channels, kernel_size=1),
    )


def _crop_like(skip: Tensor, x: Tensor) -> Tensor:
    """Centre crop of `skip` to the size of `x`; nothing to do with `same` padding."""
    top, left = (skip.shape[-2] - x.shape[-2]) // 2, (skip.shape[-1] - x.shape[-1]) // 2
    return skip[..., top : top + x.shape[-2], left : left + x.shape[-1]]


def _check_even(x: Tensor, config: UNetConfig) -> None:
    """Refuse sides that a pooling would cut: the output would silently shift."""
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        rule = f"multiples of {2**config.depth}" if config.padding == "same" else "12, 28, 44, … + 16 n at depth 4"
        msg = f"a U-Net of depth {config.depth} takes sides that its poolings divide ({rule})"
        raise ValueError(msg)
