"""How much memory a forward pass holds at its peak, measured by following every tensor that it makes."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # the documented way to see every operation


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages made inside the context and not yet freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 - the identity of the memory itself; views share it
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def bytes_per_pixel(network: nn.Module, *, bands: int, side: int) -> float:
    """Peak bytes of live tensors per input pixel, float32, batch of one.

    Args:
        network: Module in eval mode on the CPU, input `(batch, band, y, x)`.
        bands: Input bands.
        side: Side of the square that is tried, in pixels; large enough that borders do not matter.
    """
    x = torch.zeros(1, bands, side, side)
    with torch.inference_mode(), _LiveBytes() as meter:
        network(x)
    return float(meter.peak + x.nbytes) / (side * side)
