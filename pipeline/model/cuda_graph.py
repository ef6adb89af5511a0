"""A forward recorded once and launched as one thing (CUDA graph)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What a function did with one input, ready to be done again with another of the same shape."""

    graph: torch.cuda.CUDAGraph
    input: Tensor
    """Where the recorded function reads from."""
    output: Tensor
    """Where it writes to, each time."""

    def __call__(self, x: Tensor) -> Tensor:
        """Result for `x`, valid until the next call; more bands than `x` has stay as they were recorded."""
        self.input[:, : x.shape[1]].copy_(x)
        self.graph.replay()
        return self.output

    @classmethod
    def record(cls, function: Callable[[Tensor], Tensor], x: Tensor) -> Replay | None:
        """A recording; None where the function cannot be recorded or there is no memory for it.

        What waits for the GPU to decide what to do next cannot be recorded: CUDA refuses it. Other threads go on
        meanwhile.

        Args:
            function: From a tensor on the GPU to another, without side effects.
            x: Its input, kept.
        """
        apart = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        apart.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(apart):
                for _ in range(2):  # libraries choose their kernels and take their workspaces
                    function(x)
            torch.cuda.current_stream().wait_stream(apart)
            # What is recorded has memory of its own: give back what the trial took.
            torch.cuda.empty_cache()
            with torch.cuda.graph(graph, stream=apart, capture_error_mode="thread_local"):
                output = function(x)
        except (RuntimeError, torch.OutOfMemoryError):
            torch.cuda.synchronize()  # raises again where the GPU itself is lost
            torch.cuda.empty_cache()
            return None
        return cls(graph, x, output)
