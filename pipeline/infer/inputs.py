"""Where and when a forward's input is made: on a CPU while the forwards before it are computed."""

from __future__ import annotations

import contextlib
import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.infer.device import is_out_of_memory
from pipeline.infer.network_input import Scaler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from pipeline.grid import Patch
    from pipeline.infer.network_input import Piece
    from pipeline.model import Scaling


@dataclass(frozen=True, slots=True)
class Job:
    """One patch to compute."""

    patch: Patch
    pieces: list[Piece]
    """Its stored values on the device."""

    def part(self, patch: Patch) -> Job:
        """A smaller patch inside it."""
        inside = [piece.within(patch.input) for piece in self.pieces]
        return Job(patch, [piece for piece in inside if piece.window.num_pixels])


class Input:
    """Network input of one forward, made before its turn comes or when it has."""

    def __init__(self, scaler: Scaler) -> None:
        self._scaler = scaler
        self._ahead: tuple[Patch, Tensor] | None = None

    def make(self, job: Job) -> None:
        """Make that of one patch ahead. Where memory does not suffice, nothing happens: it may when the turn comes."""
        try:
            with torch.inference_mode():
                self._ahead = job.patch, self._scaler.fill(job.pieces, job.patch.input)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise

    def of(self, jobs: Sequence[Job], *, batch: int) -> Tensor:
        """`(batch, band, y, x)` of patches; on the device thread."""
        ahead, self._ahead = self._ahead, None  # held once only: halves of a patch have input of their own
        if ahead is not None and [job.patch for job in jobs] == [ahead[0]]:
            return ahead[1]
        for place, job in enumerate(jobs):
            x = self._scaler.fill(job.pieces, job.patch.input, place=place, batch=batch)
        return x


class Inputs:
    """Gives each forward a buffer for its input.

    Args:
        scaling: Of the network.
        device: Where forwards run.
        ahead: Whether the caller's thread makes the input, in one of two buffers that take turns: no forward waits for
            its input then, and those that wait for their turn take no more memory. Else the device thread, in one.
    """

    def __init__(self, scaling: Scaling, device: torch.device, *, ahead: bool) -> None:
        self._device = device
        self._scaler = Scaler(scaling)
        self._free: queue.LifoQueue[Scaler] | None = None
        if ahead:
            self._free = queue.LifoQueue()
            self._free.put(Scaler(scaling))
            self._free.put(self._scaler)

    def reserve(self, shape: tuple[int, ...]) -> None:
        """Get the memory of the first input, `(batch, band, y, x)`, which is fresh and takes long."""
        if self._free is None:
            self._scaler.reserve(shape, self._device)
            return
        with contextlib.suppress(queue.Empty):
            scaler = self._free.get_nowait()
            try:
                scaler.reserve(shape, self._device)
            finally:
                self._free.put(scaler)  # the next to be taken

    @contextlib.contextmanager
    def turn(self, jobs: Sequence[Job], *, most_px: float) -> Iterator[Input]:
        """The input of one forward, as long as that takes.

        Args:
            jobs: Its patches.
            most_px: Larger ones are known not to fit the memory; theirs is not made ahead.
        """
        if self._free is None:
            yield Input(self._scaler)
            return
        scaler = self._free.get()
        try:
            given = Input(scaler)
            if jobs[0].patch.input.num_pixels < most_px:
                given.make(jobs[0])
            yield given
        finally:
            self._free.put(scaler)
