"""One tile on one device: patches in lattice order, cropped (exact) or blended, then the arg-max."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.grid import Padding, Patch, Tiling, Window, halves
from pipeline.infer.augment import Augmentation, add_probabilities, symmetries
from pipeline.infer.device import is_out_of_memory, to_device, to_host
from pipeline.infer.inputs import Input, Inputs, Job
from pipeline.infer.network_input import cut, source_window
from pipeline.infer.sink import Sink, in_output, make_sink
from pipeline.model import NOT_FINITE, make_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.infer.device import DeviceThread
    from pipeline.infer.taper import Taper
    from pipeline.model import Engine, EngineSpec, Model, ModelSpec
    from pipeline.scene import Block

_T = TypeVar("_T")
_Finished = tuple["NDArray[np.generic]", "NDArray[np.float32] | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileResult:
    """What one window of the scene became."""

    mask: NDArray[np.generic]
    """`(y, x)` class values, uint8 or uint16, or `(class, y, x)` of 0 and 1 where classes overlap; nodata where a
    required band is invalid."""
    probabilities: NDArray[np.float32] | None
    """`(class, y, x)`, NaN where the mask is nodata; None unless asked for."""
    patches: int
    """Patches that were computed; those without a valid output pixel are skipped."""
    splits: int = 0
    """Cuts that were made for lack of memory; low bits may then differ from those of another device."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One window on its way."""

    sink: Sink
    wanted: NDArray[np.bool_]
    """`(y, x)` of the window: True where the mask gets a class."""
    coming: list[Callable[[], None]]
    """Labels that a GPU still computes: each call waits for some and puts them in."""


class Predictor:
    """A model bound to a tiling and a device. Safe to call from several threads: forwards take turns.

    Args:
        model: The model.
        tiling: Where patches lie; its shape is the scene's.
        padding: How the scene is extended beyond its rim.
        taper: Weights of blend mode.
        engine: What runs the network; probabilities are float32 always.
        thread: The device thread that forwards run on.
        tta: Images of each patch whose probabilities are averaged.
        deterministic: Fail where memory does not suffice for a patch, rather than compute it in halves, whose order of
            summation may be another.
        batch: Patches that are blended from one forward; what is missing in a tile's last batch is filled up.
        make: Gives the engine, called on the device thread; a new one if not given.
    """

    def __init__(
        self,
        model: Model,
        tiling: Tiling,
        *,
        padding: Padding,
        taper: Taper,
        engine: EngineSpec,
        thread: DeviceThread,
        tta: Augmentation = "none",
        deterministic: bool = False,
        batch: int = 1,
        make: Callable[[], Engine] | None = None,
    ) -> None:
        assert batch == 1 or tiling.mode == "blend", "exact patches are as large as pays instead"
        self.spec: ModelSpec = model.spec
        self.tiling = tiling
        self._padding = padding
        self._taper = taper
        self._device = torch.device(engine.device)
        self._thread = thread
        self._symmetries = symmetries(tta)
        self._prepared = False
        self._inputs = Inputs(model.spec.scaling, self._device, ahead=self._device.type == "cpu" and batch == 1)
        self._batch = self._fitting = batch
        self._may_split = not deterministic
        self._sizes = model.traits.sizes
        self._too_large_px = math.inf
        self._engine = thread.run(make or (lambda: make_engine(model, engine)))

    def predict(
        self,
        read: Callable[[Window], Block],
        window: Window,
        *,
        probabilities: bool = False,
        output_valid: NDArray[np.bool_] | None = None,
        patches: Sequence[Patch] | None = None,
    ) -> TileResult:
        """Classes of one window.

        Args:
            read: Gives stored values and validity of any window of the scene.
            window: Inside the scene.
            probabilities: Also return them.
            output_valid: `(y, x)` of `window`; False where no class is wanted (outside an area of interest). It
                limits the output only and changes no pixel beside it.
            patches: Those to compute it from, in order; the tiling's own if not given.

        Raises:
            ModelError: MD-006 when the network gives NaN or infinity on a valid pixel.
        """
        patches = list(self.tiling.patches(window)) if patches is None else patches
        outer = source_window(patches, self.tiling.shape, padding=self._padding)
        sink = make_sink(
            self.tiling,
            window,
            self.spec,
            taper=self._taper,
            probabilities=probabilities,
            averaged=self._averages,
        )
        self._prepare(patches[0], sink)
        block = read(outer)
        wanted = _wanted(block, outer, window, output_valid)
        needed = [p for p in patches if wanted[p.core.intersect(window).slices_in(window)].any()]
        splits, finished, work = 0, None, _Work(sink, wanted, [])
        groups = _chunks(needed, self._batch)
        for group in groups:
            jobs = [self._job(patch, block, outer) for patch in group]
            # With the last forward: queued behind it, a finished tile would wait for another tile's forward.
            finish = sink.finish if group is groups[-1] and sink.labels is None else None
            with self._inputs.turn(jobs, most_px=self._too_large_px) as given:
                cuts, finished = self._thread.run(functools.partial(self._compute_then, finish, work, jobs, given))
            splits += cuts
        for arrive in work.coming:
            arrive()
        mask, mean = finished or sink.finish()
        # By whole rows of memory: an index of the places, as `mask[~wanted]` makes one, takes ten times as long.
        np.copyto(mask, mask.dtype.type(self.spec.legend().nodata), where=~wanted)
        if mean is not None:
            np.copyto(mean, np.float32(np.nan), where=~wanted)
        return TileResult(mask=mask, probabilities=mean, patches=len(needed), splits=splits)

    def _job(self, patch: Patch, block: Block, outer: Window) -> Job:
        """A patch with its stored values, brought to the device."""
        shape, padding = self.tiling.shape, self._padding
        return Job(patch, cut(block, outer, patch.input, shape, padding=padding, bring=self._on_device))

    def _compute_then(
        self, finish: Callable[[], _Finished] | None, work: _Work, jobs: list[Job], given: Input
    ) -> tuple[int, _Finished | None]:
        """(cuts, what `finish` gives once the patches are in)."""
        return self._compute(work, jobs, given), None if finish is None else finish()

    def _compute(self, work: _Work, jobs: list[Job], given: Input) -> int:
        """Patches of one forward, on the device thread; in halves of halves where memory does not suffice.

        Half the batch first, then half the patch. Returns the cuts.
        """
        waiting, cuts = _chunks(jobs, self._fitting), 0
        while waiting:
            part = waiting.pop(0)
            pixels = self._fitting * part[0].patch.input.num_pixels
            failure: Exception | None = MemoryError()
            if pixels < self._too_large_px:
                failure = self._tried(work, part, given)
            if failure is None:
                continue
            smaller = self._halved(part) if self._may_split else []
            if not smaller:
                raise failure
            # Remembered: what failed once is not tried again by this process.
            self._too_large_px = min(self._too_large_px, pixels)
            cuts += 1
            rest = [job for later in waiting for job in later]
            waiting = smaller + _chunks(rest, self._fitting)
        return cuts

    def _halved(self, jobs: list[Job]) -> list[list[Job]]:
        """The same work in smaller forwards; empty where there are none."""
        if self._fitting > 1:
            self._fitting = -(-self._fitting // 2)
            return _chunks(jobs, self._fitting)
        if self.tiling.mode == "blend":
            return []
        [job] = jobs
        return [[job.part(half)] for half in halves(job.patch, self.tiling, self._sizes)]

    def _tried(self, work: _Work, jobs: list[Job], given: Input) -> Exception | None:
        """One forward; the error where memory did not suffice, without what the failed forward held."""
        try:
            self._step(work, jobs, given)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure: Exception = error.with_traceback(None)  # its frames hold the tensors
        else:
            return None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return failure

    def _on_device(self, array: NDArray[np.generic]) -> Tensor:
        array = _for_torch(array) if self._device.type == "cpu" else _own(array)
        try:
            return to_device(array, self._device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return self._thread.run(lambda: to_device(array, self._device))  # once no forward takes the memory

    def _prepare(self, patch: Patch, sink: Sink) -> None:
        """Let the engine and the memory of its input get ready while the first block is read."""
        if not self._prepared:
            self._prepared = True
            shape = self._batch, len(self.spec.bands), *patch.input.shape
            self._thread.start(lambda: self._engine.prepare(shape, labels=sink.labels is not None))
            self._thread.start(lambda: self._inputs.reserve(shape))

    def _step(self, work: _Work, jobs: list[Job], given: Input) -> None:
        """One forward, on the device thread: stored values in, the patches' share of the result into the sink."""
        sink = work.sink
        with torch.inference_mode():
            x = given.of(jobs, batch=self._fitting)
            kept = [job.patch.core.intersect(sink.window) for job in jobs]
            if sink.labels is not None and self._labelled(work, jobs[0].patch, kept[0], x):
                return

            def check(outputs: Tensor) -> None:
                for output, job, inside in zip(outputs, jobs, kept, strict=False):  # a batch may be filled up
                    self._check_finite(output[(slice(None), *in_output(job.patch, inside))], inside, work)

            outputs = self._average(x, check) if self._averages else self._run(x, check)
            for output, job, inside in zip(outputs, jobs, kept, strict=False):
                if inside.num_pixels:
                    sink.add(job.patch, inside, output)

    def _labelled(self, work: _Work, patch: Patch, kept: Window, x: Tensor) -> bool:
        """Labels of one patch into the mask, now or, on a GPU, once they are there; False where there are none."""
        labels = self._engine.label(x) if kept.num_pixels else None
        if labels is None:
            return not kept.num_pixels
        arriving = to_host(labels[(..., *in_output(patch, kept))])
        put = functools.partial(self._put, work, kept, arriving)
        if self._device.type == "cpu":
            put()  # the next forward needs the memory that the labels lie in
        else:
            work.coming.append(put)
        return True

    def _put(self, work: _Work, kept: Window, arriving: Callable[[], NDArray[np.generic]]) -> None:
        """The labels of a patch, once they are there, into the mask."""
        labels, into = arriving(), work.sink.labels
        one = labels[0] if self.spec.multilabel else labels  # all of a pixel's or none
        self._refuse_not_finite(one == NOT_FINITE, kept, work)
        assert into is not None
        into[(..., *kept.slices_in(work.sink.window))] = labels

    @property
    def _averages(self) -> bool:
        return len(self._symmetries) > 1

    def _run(self, x: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        outputs = self._engine.run(x)
        check(outputs)
        return outputs

    def _average(self, x: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        """Mean probabilities `(batch, class, y, x)` of patches' images, always summed in the same order."""
        total: Tensor | None = None
        for symmetry in self._symmetries:
            outputs = symmetry.undo(self._engine.run(symmetry.apply(x)))
            check(outputs)
            total = add_probabilities(total, outputs, self.spec)
        assert total is not None
        return total.div_(len(self._symmetries))

    def _check_finite(self, output: Tensor, kept: Window, work: _Work) -> None:
        # One pass and no copy of all classes: a finite sum has finite parts. An infinite one may be an overflow.
        if bool(torch.isfinite(output.sum())):
            return
        self._refuse_not_finite((~torch.isfinite(output)).any(dim=0).cpu().numpy(), kept, work)

    def _refuse_not_finite(self, found: NDArray[np.bool_], kept: Window, work: _Work) -> None:
        if not found.any():
            return
        bad = found & work.wanted[kept.slices_in(work.sink.window)]
        if bad.any():
            row, col = (int(v[0]) for v in np.nonzero(bad))
            raise ModelError(
                f"the network gives NaN or infinity for {int(bad.sum())} valid pixels",
                code="MD-006",
                title="Network output is not a number",
                where=f"window {kept}; first at row {kept.row_off + row}, column {kept.col_off + col}",
                fix="check the model's scaling against the scene's values (`scenemask inspect`), or use float32",
            )


def _chunks(items: list[_T], size: int) -> list[list[_T]]:
    """In lists of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _wanted(block: Block, outer: Window, window: Window, output_valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """`(y, x)` of `window`: True where the mask gets a class."""
    wanted: NDArray[np.bool_] = np.ones(window.shape, dtype=bool)
    if not block.all_valid:
        wanted &= block.valid[(slice(None), *window.slices_in(outer))].all(axis=0)
    return wanted if output_valid is None else wanted & output_valid


def _own(data: NDArray[np.generic]) -> NDArray[np.generic]:
    """Contiguous and writable, as what is sent to a device has to be; copied only where it is not."""
    return _for_torch(np.ascontiguousarray(data))


def _for_torch(data: NDArray[np.generic]) -> NDArray[np.generic]:
    """What PyTorch can share memory with: writable, no axis running backwards; copied only where it is not."""
    return data if data.flags.writeable and min(data.strides) >= 0 else data.copy()
