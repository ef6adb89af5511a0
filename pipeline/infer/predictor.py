"""One tile on one device: patches in lattice order, cropped (exact) or blended, then the arg-max."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.grid import Padding, Patch, Tiling, Window
from pipeline.infer.network_input import gather, scale, source_window
from pipeline.infer.sink import Sink, in_output, make_sink

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from pipeline.infer.device import DeviceThread
    from pipeline.infer.taper import Taper
    from pipeline.model import Model, ModelSpec, Precision
    from pipeline.scene import Block

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TileResult:
    """What one window of the scene became."""

    mask: NDArray[np.generic]
    """`(y, x)` class values, uint8 or uint16; nodata where a required band is invalid."""
    probabilities: NDArray[np.float32] | None
    """`(class, y, x)`, NaN where the mask is nodata; None unless asked for."""
    patches: int
    """Forwards that were computed; patches without a valid output pixel are skipped."""


class Predictor:
    """A model bound to a tiling and a device. Safe to call from several threads: forwards take turns.

    Args:
        model: The model.
        tiling: Where patches lie; its shape is the scene's.
        padding: How the scene is extended beyond its rim.
        taper: Weights of blend mode.
        device: `cpu` or `cuda`.
        precision: Of the forward; probabilities are float32 always.
        thread: The device thread that forwards run on.
    """

    def __init__(
        self,
        model: Model,
        tiling: Tiling,
        *,
        padding: Padding,
        taper: Taper,
        device: str,
        precision: Precision,
        thread: DeviceThread,
    ) -> None:
        self.spec: ModelSpec = model.spec
        self.tiling = tiling
        self._padding = padding
        self._taper = taper
        self._device = torch.device(device)
        self._precision = precision
        self._thread = thread
        self._network: nn.Module = thread.run(lambda: model.prepare(self._device))

    def predict(
        self,
        read: Callable[[Window], Block],
        window: Window,
        *,
        probabilities: bool = False,
        output_valid: NDArray[np.bool_] | None = None,
    ) -> TileResult:
        """Classes of one window.

        Args:
            read: Gives stored values and validity of any window of the scene.
            window: Inside the scene.
            probabilities: Also return them.
            output_valid: `(y, x)` of `window`; False where no class is wanted (outside an area of interest). It
                limits the output only and changes no pixel beside it.

        Raises:
            ModelError: MD-006 when the network gives NaN or infinity on a valid pixel.
        """
        patches = list(self.tiling.patches(window))
        outer = source_window(patches, self.tiling.shape, padding=self._padding)
        block = read(outer)
        wanted = _wanted(block, outer, window, output_valid)
        needed = [p for p in patches if wanted[p.core.intersect(window).slices_in(window)].any()]
        sink = make_sink(self.tiling, window, self.spec, taper=self._taper, probabilities=probabilities)
        for patch in needed:
            data = gather(block.data, outer, patch.input, self.tiling.shape, padding=self._padding)
            valid = self._patch_valid(block, outer, patch)
            self._thread.run(functools.partial(self._step, sink, patch, data, valid, wanted))
        mask, mean = self._thread.run(sink.finish)
        mask[~wanted] = self.spec.legend().nodata
        if mean is not None:
            mean[:, ~wanted] = np.nan
        return TileResult(mask=mask, probabilities=mean, patches=len(needed))

    def _patch_valid(self, block: Block, outer: Window, patch: Patch) -> NDArray[np.bool_] | None:
        """Validity of a patch's input values, None when all are usable."""
        inside = patch.input.intersect(Window.from_bounds(0, 0, *self.tiling.shape)) == patch.input
        if block.all_valid and (self._padding != "zero" or inside):
            return None
        gathered = gather(block.valid, outer, patch.input, self.tiling.shape, padding=self._padding)
        return gathered.astype(bool, copy=False)

    def _step(
        self,
        sink: Sink,
        patch: Patch,
        data: NDArray[np.generic],
        valid: NDArray[np.bool_] | None,
        wanted: NDArray[np.bool_],
    ) -> None:
        """One forward, on the device thread: stored values in, the patch's share of the result into the sink."""
        with torch.inference_mode():
            invalid = None if valid is None else torch.from_numpy(np.logical_not(valid)).to(self._device)
            x = scale(torch.from_numpy(_own(data)).to(self._device), invalid, self.spec.scaling)
            output = self._forward(x)[0]
            kept = patch.core.intersect(sink.window)
            self._check_finite(output[(slice(None), *in_output(patch, kept))], kept, wanted, sink.window)
            sink.add(patch, kept, output)

    def _forward(self, x: Tensor) -> Tensor:
        """Float32 output of the network, `(1, class, y, x)`."""
        if self._precision == "float32":
            output: Tensor = self._network(x)
        else:
            with torch.autocast(self._device.type, dtype=_DTYPES[self._precision]):
                output = self._network(x)
        return output.float()

    def _check_finite(self, output: Tensor, kept: Window, wanted: NDArray[np.bool_], window: Window) -> None:
        # One pass and no copy of all classes: a finite sum has finite parts. An infinite one may be an overflow.
        if bool(torch.isfinite(output.sum())):
            return
        bad = (~torch.isfinite(output)).any(dim=0).cpu().numpy() & wanted[kept.slices_in(window)]
        if bad.any():
            row, col = (int(v[0]) for v in np.nonzero(bad))
            raise ModelError(
                f"the network gives NaN or infinity for {int(bad.sum())} valid pixels",
                code="MD-006",
                title="Network output is not a number",
                where=f"window {kept}; first at row {kept.row_off + row}, column {kept.col_off + col}",
                fix="check the model's scaling against the scene's values (`scenemask inspect`), or use float32",
            )


def _wanted(block: Block, outer: Window, window: Window, output_valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """`(y, x)` of `window`: True where the mask gets a class."""
    wanted: NDArray[np.bool_] = np.ones(window.shape, dtype=bool)
    if not block.all_valid:
        wanted &= block.valid[(slice(None), *window.slices_in(outer))].all(axis=0)
    return wanted if output_valid is None else wanted & output_valid


def _own(data: NDArray[np.generic]) -> NDArray[np.generic]:
    """Contiguous and writable, as PyTorch wants arrays that it shares memory with; copied only where it is not."""
    data = np.ascontiguousarray(data)
    return data if data.flags.writeable else data.copy()
