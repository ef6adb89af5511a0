"""`--verify`: sampled windows computed once more, away from the tiling, and compared with what the tiles hold.

Exact mode: forwards with twice the halo around windows of their own, or one forward over the whole scene where memory
allows it. Blend mode has no such reference, so the same patches are blended in a window of another size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.grid import Tiling, Window, exact_tiling, near_seam, parts_for, round_up
from pipeline.infer import TileResult
from pipeline.run.compare import TOLERANCE, Difference, compare, differs
from pipeline.run.tile_task import make_predictor
from pipeline.run.tilings import needs_squares, patch_sizes
from pipeline.run.verify_windows import sample_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.grid import Patch
    from pipeline.infer import Predictor
    from pipeline.model import Model
    from pipeline.run.plan import Plan
    from pipeline.scene import Limits, Scene
    from pipeline.store import TileRecord, TileStore

MOST_FLIPS = 0.01
"""Share of pixels whose class may differ where the forward is not float32."""
_SIDE_PX = 128
"""Side of a sampled window."""
_LEAST_REACH_PX = 32
"""What a window's halo exceeds the plan's by at least: a halo of 0 may be wrong too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowCheck:
    """What one sampled window showed."""

    window: Window
    seam: Difference
    """Pixels within a stride of a border between patch cores."""
    other: Difference
    """The others."""
    stored_px: int
    """Pixels whose class in the store is not the recomputed one."""
    context: Difference | None
    """Blend mode: against one forward with more around the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All sampled windows."""

    against: str
    """What tiles were compared with, in words."""
    checks: tuple[WindowCheck, ...]

    @property
    def total(self) -> Difference:
        """Over all pixels."""
        return self.seam + self.other

    @property
    def seam(self) -> Difference:
        """Over pixels within a stride of a seam."""
        return sum((check.seam for check in self.checks), Difference())

    @property
    def other(self) -> Difference:
        """Over the other pixels."""
        return sum((check.other for check in self.checks), Difference())

    def to_json(self) -> dict[str, Any]:
        """As run.json has it."""
        contexts = [check.context for check in self.checks if check.context is not None]
        return {
            "windows": len(self.checks),
            "against": self.against,
            **self.total.to_json(),
            "seam": self.seam.to_json(),
            "other": self.other.to_json(),
            "stored_differs_px": sum(check.stored_px for check in self.checks),
            "larger_context": sum(contexts, Difference()).to_json() if contexts else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """Compares the tiles of a finished inference with a computation of another kind."""

    scene: Scene
    model: Model
    plan: Plan
    limits: Limits
    store: TileStore
    budget_bytes: int
    """Memory that a forward may take."""
    check_stop: Callable[[], None]
    """Called between windows; raises when the run shall stop."""

    def run(self, records: Mapping[int, TileRecord], *, count: int) -> Verification:
        """Compare `count` windows.

        Args:
            records: Of all tiles.
            count: Windows wanted.

        Raises:
            ModelError: MD-013 when they differ by more than they may.
        """
        valid_px = {index: record.valid_px for index, record in records.items()}
        legend, side = self.model.spec.legend(), self._side_px
        windows = sample_windows(self.plan, self.store, valid_px, count=count, side_px=side, legend=legend)
        tiled = self._tiled(windows)
        against, reference = self._reference()
        context = self._context() if self.plan.tiling.mode == "blend" else None
        cut = [tile.core for tile in self.plan.tiling.tiles() if records[tile.index].splits]
        checks = []
        for window, result in zip(windows, tiled, strict=True):
            self.check_stop()
            check = self._check(window, result, reference(window), context)
            checks.append(_forgiven(check) if any(core.intersect(window).num_pixels for core in cut) else check)
        made = Verification(against=against, checks=tuple(checks))
        _refuse(made, self.plan)
        return made

    def _check(
        self, window: Window, tiled: TileResult, reference: TileResult, context: Callable[[Window], TileResult] | None
    ) -> WindowCheck:
        spec, tiling = self.model.spec, self.plan.tiling
        seam = near_seam(tiling, window, reach_px=tiling.stride)
        return WindowCheck(
            window=window,
            seam=compare(tiled, reference, spec, where=seam),
            other=compare(tiled, reference, spec, where=~seam),
            stored_px=int(differs(self.store.read_mask(window), tiled.mask).sum()),
            context=None if context is None else compare(tiled, context(window), spec, where=np.ones_like(seam)),
        )

    @property
    def _side_px(self) -> int:
        stride = self.plan.tiling.stride
        return max(2 * stride, _SIDE_PX // stride * stride)

    def _tiled(self, windows: list[Window]) -> list[TileResult]:
        """The windows computed as tiles were: the same patches.

        Where the engine decides by itself, memory may suffice for a patch's classes and not for its probabilities. Then
        these come from parts of the patch with the same halo.
        """
        whole = [list(self.plan.tiling.patches(window)) for window in windows]
        if not self.plan.classes_alone:
            return self._computed(windows, whole)
        parts = [self._affordable_parts(*both) for both in zip(windows, whole, strict=True)]
        results = self._computed(windows, parts)
        if parts == whole:
            return results
        decided = self._computed(windows, whole, probabilities=False)
        return [dataclasses.replace(one, mask=other.mask) for one, other in zip(results, decided, strict=True)]

    def _affordable_parts(self, window: Window, patches: list[Patch]) -> list[Patch]:
        sizes, most_px = self.model.traits.sizes, max(self.budget_bytes, 0) / self._bytes_per_px()
        return parts_for(window, patches, self.plan.tiling, sizes, most_px=most_px)

    def _computed(
        self, windows: list[Window], patches: list[list[Patch]], *, probabilities: bool = True
    ) -> list[TileResult]:
        predictor = make_predictor(self.model, self.plan)  # its engine's memory goes with it
        results = []
        for window, own in zip(windows, patches, strict=True):
            self.check_stop()
            results.append(self._predict(predictor, window, patches=own, probabilities=probabilities))
        return results

    def _predict(
        self,
        predictor: Predictor,
        window: Window,
        *,
        probabilities: bool = True,
        patches: list[Patch] | None = None,
    ) -> TileResult:
        read, wanted = self.scene.read_block, self.limits.mask(window)
        return predictor.predict(read, window, probabilities=probabilities, output_valid=wanted, patches=patches)

    def _reference(self) -> tuple[str, Callable[[Window], TileResult]]:
        if self.plan.tiling.mode == "blend":
            return "the same patches, blended in larger windows", self._blended()
        halo = self._wide_halo_px()
        with contextlib.suppress(ValueError):  # the network takes no patch as large as the scene
            whole = self._whole_tiling(halo)
            if self._fits(whole):
                return "one forward over the whole scene", self._whole(whole)
        side, halo = self._affordable(halo)
        tiling = self._lone_tiling(side, halo)
        return f"forwards of their own with a halo of {halo} px", self._alone(tiling)

    def _context(self) -> Callable[[Window], TileResult] | None:
        """One forward with a patch more on every side, or over the whole scene; None where the network takes none."""
        reach = round_up(max(self.plan.tiling.patch_hw), self.plan.tiling.stride)
        try:
            whole = self._whole_tiling(reach)
            if self._fits(whole):
                return self._whole(whole)
            tiling = self._lone_tiling(self._side_px, reach)
        except ValueError:
            return None
        return self._alone(tiling) if self._fits(tiling) else None

    def _wide_halo_px(self) -> int:
        tiling = self.plan.tiling
        return tiling.halo_px + round_up(max(tiling.halo_px, _LEAST_REACH_PX), tiling.stride)

    def _affordable(self, halo_px: int) -> tuple[int, int]:
        """(side of a window's core, halo): first the core shrinks, then the halo, until a forward is affordable."""
        tiling, sizes = self.plan.tiling, self.model.traits.sizes
        most = math.isqrt(int(max(self.budget_bytes, 0) / self._bytes_per_px()))  # a notebook may hold more than all
        most = min(most, sizes.largest or most)
        side = min(self._side_px, max(2 * tiling.stride, (most - 2 * halo_px) // tiling.stride * tiling.stride))
        halo = min(halo_px, max(tiling.halo_px, (most - side) // 2 // tiling.stride * tiling.stride))
        return side, halo

    def _whole_tiling(self, reach_px: int) -> Tiling:
        return self._tiling(self.plan.tiling.shape, reach_px)

    def _lone_tiling(self, side_px: int, reach_px: int) -> Tiling:
        """Cores wherever the stride allows: the patch at (i, j) begins at the i-th row and j-th column of strides."""
        made = self._tiling((side_px, side_px), reach_px)
        rows, cols = (dataclasses.replace(axis, step=made.stride) for axis in (made.rows, made.cols))
        return dataclasses.replace(made, rows=rows, cols=cols)

    def _tiling(self, core_hw: tuple[int, int], reach_px: int) -> Tiling:
        traits, network_padding = self.model.traits, self.plan.padding == "network"
        return exact_tiling(
            self.plan.tiling.shape,
            core_hw=core_hw,
            halo_px=reach_px,
            stride=self.plan.tiling.stride,
            margin_px=traits.margin_px,
            sizes=patch_sizes(traits, self.plan.tta),
            tile_px=1,
            network_padding=network_padding,
            square=needs_squares(self.plan.tta, network_padding=network_padding),
        )

    def _bytes_per_px(self) -> float:
        """The plan's, and the copies that activation and comparison make."""
        return self.plan.bytes_per_px + 12 * self.plan.num_classes + 8

    def _fits(self, tiling: Tiling) -> bool:
        return math.prod(tiling.patch_hw) * self._bytes_per_px() <= self.budget_bytes

    def _predictor(self, tiling: Tiling) -> Predictor:
        whole = self.plan.engine.untrimmed  # nothing that tiles leave out is left out here
        return make_predictor(self.model, dataclasses.replace(self.plan, tiling=tiling, engine=whole))

    def _whole(self, tiling: Tiling) -> Callable[[Window], TileResult]:
        scene = Window.from_bounds(0, 0, *tiling.shape)
        result = self._predict(self._predictor(tiling), scene)
        return lambda window: _cut(result, scene, window)

    def _alone(self, tiling: Tiling) -> Callable[[Window], TileResult]:
        """Windows cut into the cores that a forward of their own covers."""
        predictor, step = self._predictor(tiling), tiling.stride
        side_h, side_w = tiling.rows.kept, tiling.cols.kept

        def compute(window: Window) -> TileResult:
            parts = []
            for row in range(window.row_off, window.row_stop, side_h):
                for col in range(window.col_off, window.col_stop, side_w):
                    part = Window.from_bounds(row, col, row + side_h, col + side_w).intersect(window)
                    patch = tiling.patch_at(row // step, col // step)
                    parts.append((part, self._predict(predictor, part, patches=[patch])))
            return _join(parts, window)

        return compute

    def _blended(self) -> Callable[[Window], TileResult]:
        predictor = make_predictor(self.model, self.plan)
        tiling = self.plan.tiling
        scene = Window.from_bounds(0, 0, *tiling.shape)

        def compute(window: Window) -> TileResult:
            larger = window.expand(max(tiling.rows.step, tiling.cols.step)).intersect(scene)
            return _cut(self._predict(predictor, larger), larger, window)

        return compute


def _forgiven(check: WindowCheck) -> WindowCheck:
    """A window of tiles whose patches were cut for lack of memory, where near-ties may have gone the other way."""
    few = check.stored_px <= MOST_FLIPS * (check.seam + check.other).pixels
    return dataclasses.replace(check, stored_px=0) if few else check


def _cut(result: TileResult, outer: Window, window: Window) -> TileResult:
    assert result.probabilities is not None
    inside = window.slices_in(outer)
    return TileResult(
        mask=result.mask[(..., *inside)],
        probabilities=result.probabilities[(slice(None), *inside)],
        patches=result.patches,
    )


def _join(parts: list[tuple[Window, TileResult]], window: Window) -> TileResult:
    first = parts[0][1]
    assert first.probabilities is not None
    mask = np.empty((*first.mask.shape[:-2], *window.shape), first.mask.dtype)
    probabilities = np.empty((len(first.probabilities), *window.shape), np.float32)
    for part, result in parts:
        place = part.slices_in(window)
        mask[(..., *place)] = result.mask
        assert result.probabilities is not None
        probabilities[(slice(None), *place)] = result.probabilities
    return TileResult(mask=mask, probabilities=probabilities, patches=len(parts))


def _refuse(made: Verification, plan: Plan) -> None:
    """Raise where results differ by more than they may.

    Raises:
        ModelError: MD-013.
    """
    total = made.total
    stored = [check for check in made.checks if check.stored_px]
    if stored:
        count = sum(check.stored_px for check in stored)
        raise _failure(
            f"the tiles hold another class than a recomputation gives at {count} of {total.pixels} sampled pixels",
            stored[0],
            "check memory and disk of the workers, then compute all tiles again with --overwrite",
        )
    strict = plan.engine.precision == "float32" or plan.tiling.mode == "blend"
    apart = [check for check in made.checks if (check.seam + check.other).judged]
    numbers = (
        f"probabilities differ by up to {total.max_abs:.2g} (mean {total.sum_abs / max(total.pixels, 1):.2g}) and "
        f"{total.flips} of {total.pixels} classes from {made.against}; on seams by up to {made.seam.max_abs:.2g} and "
        f"{made.seam.flips} of {made.seam.pixels}"
    )
    if strict and apart:
        fix = "use --tiling blend with --overwrite, and report the network: its measured halo does not hold here"
        raise _failure(f"{numbers}; allowed are {TOLERANCE:g} and no class but at ties", apart[0], fix)
    if total.flips_frac > MOST_FLIPS:
        worst = max(made.checks, key=lambda check: (check.seam + check.other).flips)
        fix = "use --precision float32 with --overwrite; if that fails too, --tiling blend"
        raise _failure(f"{numbers}; allowed is {MOST_FLIPS:.0%} of classes in {plan.engine.precision}", worst, fix)


def _failure(what: str, check: WindowCheck, fix: str) -> ModelError:
    return ModelError(
        f"{what}; nothing was written, the tiles are kept",
        code="MD-013",
        title="Verification failed",
        where=f"first in window {check.window}",
        fix=fix,
    )
