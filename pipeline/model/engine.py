"""A network made ready to run: one small protocol, whatever library computes it.

PyTorch runs everything everywhere. OpenVINO runs the same weights on x86 CPUs in less time and memory, from a graph
compiled for one patch size.
"""

from __future__ import annotations

import contextlib
import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.model.decision import NOT_FINITE, decide_output, has_labels
from pipeline.model.foreign import ForeignNetwork, OnnxNetwork, onnx_session
from pipeline.model.unet import Trimmed, UNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.model.model import Model
    from pipeline.model.spec import ModelSpec

Backend = Literal["torch", "openvino", "onnxruntime"]
Precision = Literal["float32", "bfloat16", "float16"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def has_fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 is computed in hardware there."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    with contextlib.suppress(OSError):
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    return False


class EngineSpec(BaseModel):
    """What runs a network, and how; part of the frozen plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Backend
    """Library that computes."""
    device: str
    """`cpu` or `cuda`."""
    precision: Precision
    """Of the convolutions; outputs are float32 always."""
    threads: int
    """Threads per forward."""
    one_size: bool
    """Whether all patches have one size, which a graph may then be compiled for; not so with network padding."""
    deterministic: bool = False
    """Only kernels that give the same bits each time, and no smaller patches where memory does not suffice."""
    trim_px: int = 0
    """Outputs on each side that nobody needs, because they lie in the halo of every patch; the engine leaves out
    `left_out_px` of them."""


class Engine(Protocol):
    """Used by one thread at a time."""

    def prepare(self, shape: tuple[int, ...], *, labels: bool) -> None:
        """Do what the first call for inputs of this shape would have to do before it computes.

        Args:
            shape: (batch, band, y, x).
            labels: Whether `label` will be called; else `run`.
        """

    def run(self, x: Tensor) -> Tensor:
        """Output of the network.

        Args:
            x: `(batch, band, y, x)` float32, scaled, on the device.

        Returns:
            `(batch, class, y', x')` float32, without the `left_out_px` outermost pixels. Valid until the next call.
        """

    def label(self, x: Tensor) -> Tensor | None:
        """The class with the largest output, the first on a tie, or those above their thresholds.

        Args:
            x: `(1, band, y, x)` float32, scaled, on the device.

        Returns:
            uint8, trimmed alike, valid until the next call: `(y', x')`, with a multilabel model `(class, y', x')` of 0
            and 1; `NOT_FINITE` where an output is no number. None where the library cannot do it inside.
        """


def make_engine(model: Model, spec: EngineSpec) -> Engine:
    """The engine that a plan asks for. Call it on the thread that will use it.

    Raises:
        ModelError: MD-012 when this machine cannot run the backend.
    """
    if spec.backend == "openvino":
        from pipeline.model.openvino import OpenVinoEngine  # noqa: PLC0415 - an extra; half a second to import

        return OpenVinoEngine.of(model, spec)
    if spec.backend == "onnxruntime":
        return OnnxEngine(model.network, spec)
    return TorchEngine(model.network, spec, decides=model.spec)


class TorchEngine:
    """Eager PyTorch: batch norm folded into convolutions, channels last.

    Args:
        network: In eval mode.
        spec: Device, precision, what is left out.
        decides: What makes classes of the network's outputs; without it there are no labels.
    """

    def __init__(self, network: nn.Module, spec: EngineSpec, *, decides: ModelSpec | None = None) -> None:
        self._spec = spec
        self._decides = decides if decides is not None and has_labels(decides) else None
        ready = copy.deepcopy(network).to(device=spec.device)
        if not isinstance(network, ForeignNetwork):  # programs stay as they are
            ready = fold_batch_norm(ready).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network: nn.Module = trimmed(ready, spec.trim_px).eval()
        if spec.device == "cuda":
            if spec.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
            # PyTorch's default lets convolutions round float32 to TF32, and pick kernels by timing them.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = spec.precision != "float32"
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(spec.deterministic)
        self._input: Tensor | None = None

    def prepare(self, shape: tuple[int, ...], *, labels: bool) -> None:
        """Nothing to do."""

    def run(self, x: Tensor) -> Tensor:
        """Output of the network; see `Engine`."""
        with torch.inference_mode(), self._autocast():
            output: Tensor = self._network(self._channels_last(x))
        return output.float()

    def label(self, x: Tensor) -> Tensor | None:
        """Classes; see `Engine`.

        The decision, and the head of our own U-Net, run strip by strip: memory for one strip of all classes is enough,
        however many there are.
        """
        decides = self._decides
        if decides is None:
            return None
        with torch.inference_mode(), self._autocast():
            values, head = self._before_head(self._channels_last(x))
            shape = decides.legend().mask_shape((values.shape[-2], values.shape[-1]))
            labels = torch.empty(shape, dtype=torch.uint8, device=values.device)
            for row in range(0, shape[-2], _STRIP_ROWS):
                strip = labels[..., row : row + _STRIP_ROWS, :]
                output = head(values[..., row : row + _STRIP_ROWS, :])[0].float()
                strip.copy_(decide_output(output, decides))
                strip[..., ~torch.isfinite(output.sum(dim=0))] = NOT_FINITE
        return labels

    def _before_head(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(values, head): what is left to do for each pixel on its own; nothing for networks that are not ours."""
        network = self._network.network if isinstance(self._network, Trimmed) else self._network
        if is_plain_unet(network):
            return network.features(x, self._spec.trim_px), network.head
        return self._network(x), _as_it_is

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self._spec.precision)
        return torch.autocast(self._spec.device, dtype=dtype, enabled=dtype is not None)

    def _channels_last(self, x: Tensor) -> Tensor:
        if self._input is None or self._input.shape != x.shape:
            self._input = torch.empty_like(x, memory_format=torch.channels_last)
        return self._input.copy_(x)


_STRIP_ROWS = 64
"""A strip of 2 048 px and 100 classes takes 52 MB."""


def _as_it_is(values: Tensor) -> Tensor:
    return values


class OnnxEngine:
    """ONNX Runtime, float32."""

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        if not isinstance(network, OnnxNetwork):
            msg = f"ONNX Runtime runs ONNX files, not {type(network).__name__}"
            raise TypeError(msg)
        self._device = spec.device
        self._network = OnnxNetwork(network.content, network.io)
        session = onnx_session(network.content, where=network.io.file, threads=spec.threads, device=spec.device)
        self._network.session = session

    def prepare(self, shape: tuple[int, ...], *, labels: bool) -> None:
        """Nothing to do."""

    def run(self, x: Tensor) -> Tensor:
        """Output of the network; see `Engine`."""
        output: Tensor = self._network(x)
        return output.float().to(self._device)

    def label(self, x: Tensor) -> None:
        """None: outputs leave the library as they are."""


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
