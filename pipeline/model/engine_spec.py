"""What runs a network, and the small protocol that all that do it keep to."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

Backend = Literal["torch", "openvino", "onnxruntime"]
Precision = Literal["float32", "bfloat16", "float16"]


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
    """Outputs on each side that nobody needs, because they lie in the halo of every patch."""
    left_out_px: int = 0
    """How many of them the engine leaves out; see `num_left_out`."""

    @property
    def untrimmed(self) -> EngineSpec:
        """The same engine, which leaves nothing out."""
        return self.model_copy(update={"trim_px": 0, "left_out_px": 0})


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
