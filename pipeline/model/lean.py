"""The same network with less work: batch norm folded away, half the bytes, outputs that nobody needs left out."""

from __future__ import annotations

import copy
import itertools
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.model.foreign import ForeignNetwork
from pipeline.model.unet import Trimmed, UNet


class Lean(NamedTuple):
    """A network made ready."""

    network: nn.Module
    computes_itself: bool
    """Whether it computes in the wanted precision by itself; else it stays float32, and autocast decides where low
    precision does no harm."""
    bands_at_once: int = 1
    """The input has a multiple of so many bands; those added are zero."""


def lean(network: nn.Module, *, device: str, dtype: torch.dtype) -> Lean:
    """A copy of a network that is fast on a device.

    Args:
        network: In eval mode.
        device: `cpu` or `cuda`.
        dtype: Of its convolutions.
    """
    ready = copy.deepcopy(network).to(device=device)
    if isinstance(network, ForeignNetwork):  # programs stay as they are
        return Lean(ready, dtype == torch.float32)
    ready = fold_batch_norm(ready).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype == torch.float32:
        return Lean(ready, computes_itself=True)
    if not is_plain_unet(ready) or not all(isinstance(module, _BY_CONVOLUTION) for module in ready.modules()):
        return Lean(ready, computes_itself=False)
    ready.to(dtype=dtype)
    if device != "cuda":
        return Lean(ready, computes_itself=True)
    fuse_relu(ready)
    first: Any = ready.encoder[0]
    _widen(first[0])
    return Lean(ready, computes_itself=True, bands_at_once=_BANDS_AT_ONCE)


_BY_CONVOLUTION = (
    UNet, nn.Sequential, nn.ModuleList, nn.Conv2d, nn.ConvTranspose2d, nn.Upsample, nn.ReLU, nn.Identity, nn.Dropout2d
)  # fmt: skip
"""Nothing here sums over more than a kernel, so that low precision costs one rounding per layer."""


def is_plain_unet(network: nn.Module) -> TypeGuard[UNet]:
    """Whether it is our U-Net and no subclass, whose forward may do more."""
    return type(network) is UNet


def can_trim(network: nn.Module) -> bool:
    """Whether an engine can leave outputs out, and with them the work that only they need."""
    return is_plain_unet(network) and network.can_trim


def left_out_px(network: nn.Module, trim_px: int) -> int:
    """Outputs that an engine leaves out on each side, at most `trim_px`."""
    return network.left_out(trim_px) if is_plain_unet(network) else 0


def trimmed(network: nn.Module, trim_px: int) -> nn.Module:
    """The network without work for its outermost outputs."""
    if not trim_px:
        return network
    assert is_plain_unet(network)
    return Trimmed(network, trim_px)


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Replace each convolution followed by batch norm in a Sequential by one convolution. In eval mode only."""
    for child in module.children():
        fold_batch_norm(child)
    if isinstance(module, nn.Sequential):
        for index in range(len(module) - 1):
            conv, norm = module[index], module[index + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(conv, norm)
                module[index + 1] = nn.Identity()
    return module


class ConvReLU(nn.Module):
    """A convolution that adds its bias and cuts off what is negative before it writes: one pass over memory, not three.

    On CUDA only; by cuDNN's own kernels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        assert not isinstance(conv.padding, str)
        self.weight, self.bias = conv.weight, conv.bias
        self._shape: tuple[Any, ...] = conv.stride, conv.padding, conv.dilation, conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """Same as the convolution followed by ReLU."""
        output: Tensor = torch.cudnn_convolution_relu(x, self.weight, self.bias, *self._shape)
        return output


_BANDS_AT_ONCE = 8
"""Of 16 bits each, what tensor cores take; with four bands cuDNN uses other, slower kernels."""


def _widen(first: ConvReLU) -> None:
    """Let the first convolution take more bands, without weight."""
    weight = first.weight
    wide = weight.new_zeros((weight.shape[0], widened(weight.shape[1], _BANDS_AT_ONCE), *weight.shape[2:]))
    wide[:, : weight.shape[1]] = weight
    first.weight = nn.Parameter(wide.to(memory_format=torch.channels_last), requires_grad=False)


def widened(bands: int, at_once: int) -> int:
    """`bands` rounded up to a multiple of `at_once`."""
    return -(-bands // at_once) * at_once


def fuse_relu(module: nn.Module) -> nn.Module:
    """Replace each convolution followed by ReLU in a Sequential by `ConvReLU`, batch norm having been folded."""
    for child in module.children():
        fuse_relu(child)
    if isinstance(module, nn.Sequential):
        kept = [index for index, layer in enumerate(module) if not isinstance(layer, nn.Identity)]
        for index, after in itertools.pairwise(kept):
            conv = module[index]
            if isinstance(conv, nn.Conv2d) and isinstance(module[after], nn.ReLU):
                module[index], module[after] = ConvReLU(conv), nn.Identity()
    return module
