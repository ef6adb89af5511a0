"""Test-time augmentation: a patch flipped and turned, its probabilities turned back and averaged.

Sides of patches are multiples of the stride, so a flip maps the lattice of strides onto itself, and what holds for a
patch as it is (equal to one whole forward, away from its border) holds for each of its images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from pipeline.model import to_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.model import ModelSpec

Augmentation = Literal["none", "flips", "d4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Symmetry:
    """One of the eight ways to lay a square onto itself. All act on the last two axes."""

    transpose: bool
    """Rows become columns, before anything is flipped."""
    flip_rows: bool
    """Top becomes bottom."""
    flip_cols: bool
    """Left becomes right."""

    def apply(self, x: Tensor) -> Tensor:
        """The image of a patch `(…, y, x)`; contiguous."""
        turned = x.transpose(-1, -2) if self.transpose else x
        return (turned.flip(self._axes) if self._axes else turned).contiguous()

    def undo(self, x: Tensor) -> Tensor:
        """The reverse of `apply`; contiguous, and a copy unless there is nothing to undo."""
        back = x.flip(self._axes) if self._axes else x
        return (back.transpose(-1, -2) if self.transpose else back).contiguous()

    @property
    def _axes(self) -> tuple[int, ...]:
        return ((-2,) if self.flip_rows else ()) + ((-1,) if self.flip_cols else ())


def symmetries(augmentation: Augmentation) -> tuple[Symmetry, ...]:
    """Images to average, in the order of summation: a power of two, so that dividing by their number is exact."""
    turns = {"none": (), "flips": (False,), "d4": (False, True)}[augmentation]
    made = tuple(
        Symmetry(transpose=transpose, flip_rows=flip_rows, flip_cols=flip_cols)
        for transpose in turns
        for flip_rows in (False, True)
        for flip_cols in (False, True)
    )
    return made or (Symmetry(transpose=False, flip_rows=False, flip_cols=False),)


def add_probabilities(total: Tensor | None, outputs: Tensor, spec: ModelSpec) -> Tensor:
    """Running sum of probabilities in float32, strip by strip of rows: those of one strip take memory.

    Args:
        total: `(batch, class, y, x)`, which is added to; a new one if not given.
        outputs: Of the network, `(batch, channel, y, x)`.
        spec: What makes probabilities of them.
    """
    height, row_nbytes = outputs.shape[-2], 4 * outputs[..., 0, :].numel()
    rows = max(1, _STRIP_BYTES // row_nbytes)
    first = total is None
    for row in range(0, height, rows):
        part = torch.stack([to_probabilities(output[:, row : row + rows], spec) for output in outputs])
        if total is None:
            total = part.new_empty((*part.shape[:2], *outputs.shape[-2:]), dtype=torch.float32)
        place = total[:, :, row : row + rows]
        if first:
            place.copy_(part)
        else:
            place.add_(part)
    assert total is not None
    return total


_STRIP_BYTES = 16 << 20
