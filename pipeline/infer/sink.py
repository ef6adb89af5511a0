"""Where patches' outputs meet: cores laid side by side (exact), or a weighted mean in lattice order (blend)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.infer.taper import Taper, axis_weights
from pipeline.model import decide, decide_output, to_probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import Patch, Tiling, Window
    from pipeline.model import ModelSpec


class Sink(Protocol):
    """Collects the patches of one window; used on the device thread only."""

    window: Window
    labels: NDArray[np.generic] | None
    """The window's mask: where classes alone may be put, so that the engine can keep its outputs to itself; None
    where outputs are needed."""

    def add(self, patch: Patch, kept: Window, output: Tensor) -> None:
        """Take in one patch: `output` is `(class, y, x)` float32 of the whole patch, `kept` lies in its core.

        The network's own output, or probabilities where those of several forwards were averaged.
        """

    def finish(self) -> tuple[NDArray[np.generic], NDArray[np.float32] | None]:
        """The window's mask, `(y, x)` or `(class, y, x)` where classes overlap, and its probabilities if asked for."""


def make_sink(
    tiling: Tiling, window: Window, spec: ModelSpec, *, taper: Taper, probabilities: bool, averaged: bool = False
) -> Sink:
    """The sink that the tiling's mode needs; `averaged`: it is given probabilities, not the network's output."""
    if tiling.mode == "exact":
        return _Crop(window, spec, probabilities=probabilities, averaged=averaged)
    return _Blend(window, spec, tiling, taper, probabilities=probabilities, averaged=averaged)


def in_output(patch: Patch, kept: Window) -> tuple[slice, slice]:
    """Rows and columns of `kept`, a part of the patch's core, in the network's output."""
    row = patch.output_off_hw[0] + kept.row_off - patch.core.row_off
    col = patch.output_off_hw[1] + kept.col_off - patch.core.col_off
    return slice(row, row + kept.height), slice(col, col + kept.width)


class _Crop:
    def __init__(self, window: Window, spec: ModelSpec, *, probabilities: bool, averaged: bool) -> None:
        self.window = window
        self._spec = spec
        self._averaged = averaged
        legend = spec.legend()
        self._mask = np.full(legend.mask_shape(window.shape), legend.nodata, legend.dtype)
        shape = (len(legend), *window.shape)
        self._probabilities = np.full(shape, np.nan, np.float32) if probabilities else None
        self.labels: NDArray[np.generic] | None = None if probabilities or averaged else self._mask

    def add(self, patch: Patch, kept: Window, output: Tensor) -> None:
        inside = (slice(None), *in_output(patch, kept))
        place = kept.slices_in(self.window)
        # From the network's own output where there is one, so that asking for probabilities changes no class.
        classes = (decide if self._averaged else decide_output)(output[inside], self._spec)
        self._mask[(..., *place)] = classes.cpu().numpy()
        if self._probabilities is not None:
            # The activation runs on the whole patch: its low bits may depend on where in memory a pixel lies.
            values = output if self._averaged else to_probabilities(output, self._spec)
            self._probabilities[(slice(None), *place)] = values[inside].cpu().numpy()

    def finish(self) -> tuple[NDArray[np.generic], NDArray[np.float32] | None]:
        return self._mask, self._probabilities


class _Blend:
    """Sum of weighted probabilities over sum of weights, both float32, always added in lattice order."""

    def __init__(
        self, window: Window, spec: ModelSpec, tiling: Tiling, taper: Taper, *, probabilities: bool, averaged: bool
    ) -> None:
        self.window = window
        self._probabilities = probabilities
        self._spec = spec
        self._tiling = tiling
        self._taper = taper
        self._averaged = averaged
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None
        self.labels: NDArray[np.generic] | None = None

    def add(self, patch: Patch, kept: Window, output: Tensor) -> None:
        values = output if self._averaged else to_probabilities(output, self._spec)
        values = values[(slice(None), *in_output(patch, kept))]
        if self._sum is None or self._weight is None:
            self._sum = torch.zeros((values.shape[0], *self.window.shape), device=output.device)
            self._weight = torch.zeros(self.window.shape, device=output.device)
        weights = torch.from_numpy(self._weights(patch, kept)).to(output.device)
        rows, cols = kept.slices_in(self.window)
        # Two rounded operations, not a fused one: the same sum wherever the tile was cut.
        self._sum[:, rows, cols].add_(values * weights)
        self._weight[rows, cols].add_(weights)

    @torch.inference_mode()
    def finish(self) -> tuple[NDArray[np.generic], NDArray[np.float32] | None]:
        legend = self._spec.legend()
        if self._sum is None or self._weight is None:  # every patch was skipped: nothing valid here
            empty = np.full((len(legend), *self.window.shape), np.nan, np.float32) if self._probabilities else None
            return np.full(legend.mask_shape(self.window.shape), legend.nodata, legend.dtype), empty
        mean = self._sum.div_(self._weight)
        mask = decide(mean, self._spec).cpu().numpy().astype(legend.dtype)
        return mask, mean.cpu().numpy() if self._probabilities else None

    def _weights(self, patch: Patch, kept: Window) -> NDArray[np.float32]:
        """`(y, x)` weights of `kept`, cut from those of the whole, unclipped output."""
        top, bottom, left, right = patch.open_sides

        def axis(kept_px: int, step_px: int, start: int, size: int, *, opens: tuple[bool, bool]) -> NDArray[np.float32]:
            weights = axis_weights(
                kept_px, overlap_px=kept_px - step_px, taper=self._taper, open_start=opens[0], open_stop=opens[1]
            )
            return weights[start : start + size]

        rows, cols = self._tiling.rows, self._tiling.cols
        y = axis(rows.kept, rows.step, kept.row_off - patch.core.row_off, kept.height, opens=(top, bottom))
        x = axis(cols.kept, cols.step, kept.col_off - patch.core.col_off, kept.width, opens=(left, right))
        return y[:, None] * x[None, :]
