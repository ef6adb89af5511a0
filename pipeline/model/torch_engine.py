"""PyTorch: batch norm folded into convolutions, channels last; on a GPU the whole forward is one launch."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import torch

from pipeline.model.cuda_graph import Replay
from pipeline.model.decision import NOT_FINITE, decide_output, has_labels
from pipeline.model.lean import is_plain_unet, lean, trimmed, widened
from pipeline.model.unet import Trimmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from pipeline.model.engine_spec import EngineSpec
    from pipeline.model.spec import ModelSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """Eager PyTorch, and on CUDA a recorded forward where all patches have one size.

    Args:
        network: In eval mode.
        spec: Device, precision, what is left out.
        decides: What makes classes of the network's outputs; without it there are no labels.
    """

    def __init__(self, network: nn.Module, spec: EngineSpec, *, decides: ModelSpec | None = None) -> None:
        self._spec = spec
        self._decides = decides if decides is not None and has_labels(decides) else None
        self._on_gpu = spec.device == "cuda"
        self._dtype = _DTYPES[spec.precision]
        ready, computes_itself, self._bands_at_once = lean(network, device=spec.device, dtype=self._dtype)
        self._autocasts = not computes_itself
        self._network: nn.Module = trimmed(ready, spec.trim_px).eval()
        if self._on_gpu and spec.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        self._input: Tensor | None = None
        self._replays: dict[tuple[tuple[int, ...], bool], Replay] = {}

    def prepare(self, shape: tuple[int, ...], *, labels: bool) -> None:
        """Record the forward on a GPU, where one size serves all patches; see `Engine`.

        A launch takes some microseconds, and dozens of them longer than a small forward; beside busy threads of Python
        each may wait for its turn.
        """
        function = self._label if labels else self._run
        if not self._on_gpu or not self._spec.one_size or (shape, labels) in self._replays:
            return
        x = self._new_input(shape)
        with self._as_asked_for():
            recorded = Replay.record(function, x)
        if recorded is not None:
            self._replays[shape, labels] = recorded

    def run(self, x: Tensor) -> Tensor:
        """Output of the network; see `Engine`."""
        return self._computed(self._run, x, labels=False)

    def label(self, x: Tensor) -> Tensor | None:
        """Classes; see `Engine`.

        The decision, and the head of our own U-Net, run strip by strip: memory for one strip of all classes is enough,
        however many there are.
        """
        return None if self._decides is None else self._computed(self._label, x, labels=True)

    def _computed(self, function: Callable[[Tensor], Tensor], x: Tensor, *, labels: bool) -> Tensor:
        recorded = self._replays.get((tuple(x.shape), labels))
        if recorded is not None:
            with torch.inference_mode():
                return recorded(x)
        if self._input is None or self._input.shape[::2] != x.shape[::2] or self._input.shape[3] != x.shape[3]:
            self._input = self._new_input(tuple(x.shape))
        with self._as_asked_for():
            self._input[:, : x.shape[1]].copy_(x)
            return function(self._input)

    def _run(self, x: Tensor) -> Tensor:
        output: Tensor = self._network(x)
        return output.float()

    def _label(self, x: Tensor) -> Tensor:
        decides = self._decides
        assert decides is not None
        values, head = self._before_head(x)
        shape = decides.legend().mask_shape((values.shape[-2], values.shape[-1]))
        labels = torch.empty(shape, dtype=torch.uint8, device=values.device)
        rows = self._strip_rows(values.shape[-1], decides)
        for row in range(0, shape[-2], rows):
            strip = labels[..., row : row + rows, :]
            output = head(values[..., row : row + rows, :])[0].float()
            strip.copy_(decide_output(output, decides))
            strip.masked_fill_(~torch.isfinite(output.sum(dim=0)), NOT_FINITE)
        return labels

    def _strip_rows(self, width: int, decides: ModelSpec) -> int:
        """On a CPU a strip stays in its caches; a GPU wants few and large ones."""
        if not self._on_gpu:
            return _STRIP_ROWS
        return max(_STRIP_ROWS, _STRIP_BYTES_ON_GPU // (4 * width * len(decides.classes)))

    def _before_head(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(values, head): what is left to do for each pixel on its own; nothing for networks that are not ours."""
        network = self._network.network if isinstance(self._network, Trimmed) else self._network
        if is_plain_unet(network):
            return network.features(x, self._spec.trim_px), network.head
        return self._network(x), _as_it_is

    @contextlib.contextmanager
    def _as_asked_for(self) -> Iterator[None]:
        """The precision and the kind of kernels of this engine's spec, whatever other engines of the process have."""
        if self._on_gpu:
            # PyTorch's default lets convolutions round float32 to TF32, and pick kernels by timing them. Settings of
            # the whole process: another engine, made since, may have changed them.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self._spec.precision != "float32"
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(self._spec.deterministic)
        autocast = torch.autocast(self._spec.device, dtype=self._dtype) if self._autocasts else contextlib.nullcontext()
        with torch.inference_mode(), autocast:
            yield

    def _new_input(self, shape: tuple[int, ...]) -> Tensor:
        batch, bands, height, width = shape
        made = torch.zeros(
            (batch, widened(bands, self._bands_at_once), height, width),
            dtype=torch.float32 if self._autocasts else self._dtype,
            device=self._spec.device,
        )
        return made.to(memory_format=torch.channels_last)


_STRIP_ROWS = 64
"""A strip of 2 048 px and 100 classes takes 52 MB."""
_STRIP_BYTES_ON_GPU = 1 << 28


def _as_it_is(values: Tensor) -> Tensor:
    return values
