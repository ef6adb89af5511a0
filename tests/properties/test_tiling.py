"""Cores cover every pixel; patches do not depend on tiles."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.grid import (
    SizeRule,
    Tiling,
    Window,
    balanced_core,
    blend_tiling,
    exact_tiling,
    iter_windows,
    source_index,
)

sides = st.integers(1, 400)


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    stride = draw(st.sampled_from([1, 4, 16]))
    shape = (draw(sides), draw(sides))
    sizes = SizeRule(multiple=stride, smallest=stride)
    tile = draw(st.integers(1, 300))
    if draw(st.booleans()):
        return exact_tiling(
            shape,
            core_hw=(draw(st.integers(16, 100)), draw(st.integers(16, 100))),
            halo_px=stride * draw(st.integers(0, 6)),
            stride=stride,
            margin_px=0,
            sizes=sizes,
            tile_px=tile,
            network_padding=draw(st.booleans()),
        )
    patch = draw(st.integers(40, 120))
    overlap = draw(st.integers(0, patch - stride))
    return blend_tiling(
        shape, patch_px=patch, overlap_px=overlap, stride=stride, margin_px=0, sizes=sizes, tile_px=tile
    )


@given(tiling=tilings())
def test_tile_cores_cover_the_scene_once(tiling: Tiling) -> None:
    count = np.zeros(tiling.shape, int)
    for tile in tiling.tiles():
        count[tile.core.slices_in(Window.from_bounds(0, 0, *tiling.shape))] += 1
    assert (count == 1).all()


@given(tiling=tilings())
def test_patch_cores_cover_every_tile(tiling: Tiling) -> None:
    """Once in exact mode, at least once in blend mode: no strip at the right or bottom is left out."""
    scene = Window.from_bounds(0, 0, *tiling.shape)
    count = np.zeros(tiling.shape, int)
    seen = set()
    for tile in tiling.tiles():
        covered = np.zeros(tile.core.shape, int)
        for patch in tiling.patches(tile.core):
            assert patch.core.intersect(scene) == patch.core
            covered[patch.core.intersect(tile.core).slices_in(tile.core)] += 1
            if patch.index_rc not in seen:
                seen.add(patch.index_rc)
                count[patch.core.slices_in(scene)] += 1
        assert covered.min() >= 1
    assert len(seen) == tiling.num_patches
    if tiling.mode == "exact":
        assert (count == 1).all()
        assert (count > 0).all()


@given(tiling=tilings())
def test_redundancy_counts_every_patch_of_every_tile(tiling: Tiling) -> None:
    pixels = sum(patch.input.num_pixels for tile in tiling.tiles() for patch in tiling.patches(tile.core))
    assert tiling.redundancy() == pytest.approx(pixels / math.prod(tiling.shape))


@given(tiling=tilings())
def test_patches_lie_on_the_stride_and_hold_their_core(tiling: Tiling) -> None:
    for patch in tiling.patches(Window.from_bounds(0, 0, *tiling.shape)):
        assert patch.input.row_off % tiling.stride == 0
        assert patch.input.col_off % tiling.stride == 0
        row, col = patch.output_off_hw
        assert row >= 0
        assert row + patch.core.height <= patch.input.height
        assert col >= 0
        assert col + patch.core.width <= patch.input.width
        assert patch.input.height % tiling.stride == 0


@given(tiling=tilings())
def test_an_exact_core_has_its_halo_or_the_rim(tiling: Tiling) -> None:
    if tiling.mode == "blend":
        return
    for patch in tiling.patches(Window.from_bounds(0, 0, *tiling.shape)):
        top = patch.core.row_off - patch.input.row_off
        bottom = patch.input.row_stop - patch.core.row_stop
        assert top >= tiling.halo_px or patch.input.row_off == 0
        assert bottom >= tiling.halo_px or patch.input.row_stop >= tiling.shape[0]


@given(size=st.integers(1, 40), before=st.integers(0, 130), after=st.integers(0, 130))
@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("edge", "edge")])
def test_source_index_equals_numpy_pad(size: int, before: int, after: int, padding: str, mode: str) -> None:
    expected = np.pad(np.arange(size), (before, after), mode=mode)  # type: ignore[call-overload]
    got = source_index(-before, size + after, size, padding=padding)  # type: ignore[arg-type]
    assert (got == expected).all()


def test_zero_padding_marks_what_is_outside() -> None:
    assert source_index(-2, 5, 3, padding="zero").tolist() == [-1, -1, 0, 1, 2, -1, -1]


@given(height=sides, width=sides, step=st.integers(1, 100))
def test_windows_cover_once(height: int, width: int, step: int) -> None:
    assert sum(w.num_pixels for w in iter_windows((height, width), (step, step))) == height * width


def test_f6_an_overlap_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no step"):
        blend_tiling(
            (100, 100), patch_px=64, overlap_px=64, stride=1, margin_px=0, sizes=SizeRule(multiple=1), tile_px=1
        )


def test_a_size_beyond_a_fixed_one_is_refused() -> None:
    assert SizeRule(multiple=16, remainder=12, smallest=188).at_least(189) == 204
    with pytest.raises(ValueError, match="at most 512"):
        SizeRule(multiple=1, smallest=512, largest=512).at_least(513)


@given(multiple=st.integers(1, 40), remainder=st.integers(0, 39), smallest=st.integers(1, 90), size=st.integers(1, 300))
def test_the_largest_side_that_fits(multiple: int, remainder: int, smallest: int, size: int) -> None:
    rule = SizeRule(multiple=multiple, remainder=remainder % multiple, smallest=smallest)
    allowed = [n for n in range(1, size + 1) if n >= smallest and n % multiple == remainder % multiple]
    assert rule.at_most(size) == (max(allowed) if allowed else None)


@example(height=241, width=2593, halo=0, largest=256**2, square=False)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    halo=st.sampled_from([0, 16, 48]),
    largest=st.integers(200**2, 1500**2),
    square=st.booleans(),
)
def test_balanced_cores_fit_the_budget_and_nothing_cheaper_does(
    height: int, width: int, halo: int, largest: int, *, square: bool
) -> None:
    rule = SizeRule(multiple=16)

    def cost(core_h: int, core_w: int) -> float:
        patch = rule.at_least(core_h + 2 * halo) * rule.at_least(core_w + 2 * halo)
        blocks_cut = not halo and (core_h % 256 or core_w % 256)
        longer = 1.08 if blocks_cut else 1.0
        return math.inf if patch > largest else -(-height // core_h) * -(-width // core_w) * patch * longer

    def seconds(patch_hw: tuple[Any, Any]) -> Any:
        return np.where(math.prod(patch_hw) <= largest, math.prod(patch_hw), math.inf)

    core_h, core_w = balanced_core((height, width), halo_px=halo, stride=16, sizes=rule, seconds=seconds, square=square)
    assert core_h % 16 == core_w % 16 == 0
    assert cost(core_h, core_w) < math.inf
    heights, widths = ({-(-n // parts // 16) * 16 for parts in range(1, 7)} for n in (height, width))
    others = ((c, c) for c in heights | widths) if square else itertools.product(heights, widths)
    assert all(cost(core_h, core_w) <= 1.01 * cost(h, w) for h, w in others if max(h, w) <= 2048)
