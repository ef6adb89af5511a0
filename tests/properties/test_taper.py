"""Weights of blend mode: over any pixel of a regular lattice they share out the whole, neither more nor less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.grid import SizeRule, Tiling, Window, blend_tiling
from pipeline.infer.sink import _Blend
from pipeline.infer.taper import Taper, axis_weights
from pipeline.model import ModelSpec, Scaling

TAPERS: tuple[Taper, ...] = ("hann", "gaussian", "linear")
SPEC = ModelSpec(name="x", bands=("a",), classes=("b", "c"), scaling=Scaling.identity(1))


@st.composite
def lattices(draw: st.DrawFn) -> Tiling:
    """Scenes, patches and overlaps of any proportion; also more than half overlapped, also larger than the scene."""
    stride = draw(st.sampled_from([1, 4, 16]))
    patch = stride * draw(st.integers(2, 96 // stride))
    return blend_tiling(
        (draw(st.integers(1, 150)), draw(st.integers(1, 150))),
        patch_px=patch,
        overlap_px=draw(st.integers(0, patch - stride)),
        stride=stride,
        margin_px=0,
        sizes=SizeRule(multiple=stride, remainder=0, smallest=stride),
        tile_px=1,
    )


def _planes(tiling: Tiling, taper: Taper) -> list[NDArray[np.float32]]:
    """Each patch's weights on the whole scene, 0 where it does not reach."""
    scene = Window.from_bounds(0, 0, *tiling.shape)
    sink = _Blend(scene, SPEC, tiling, taper, probabilities=False, averaged=False)
    planes = []
    for patch in tiling.patches(scene):
        plane = np.zeros(tiling.shape, np.float32)
        plane[patch.core.slices_in(scene)] = sink._weights(patch, patch.core)
        planes.append(plane)
    return planes


@given(tiling=lattices(), taper=st.sampled_from(TAPERS))
def test_normalised_weights_are_a_partition_of_unity(tiling: Tiling, taper: Taper) -> None:
    planes = _planes(tiling, taper)
    total = np.sum(planes, axis=0, dtype=np.float32)
    assert (total > 0).all()
    shares = [plane / total for plane in planes]
    assert all(((share >= 0) & (share <= 1 + 1e-6)).all() for share in shares)
    rounding = (len(planes) + 2) * float(np.finfo(np.float32).eps)  # of a sum of so many, and of one division each
    np.testing.assert_allclose(np.sum(shares, axis=0, dtype=np.float64), 1.0, rtol=rounding)


@given(tiling=lattices(), taper=st.sampled_from(["hann", "linear"]))
def test_two_neighbours_sum_to_one_before_they_are_divided(tiling: Tiling, taper: Taper) -> None:
    """Where at most two patches meet along an axis: an overlap of at most half a patch."""
    if any(2 * (axis.kept - axis.step) > axis.kept for axis in (tiling.rows, tiling.cols)):
        return
    np.testing.assert_allclose(np.sum(_planes(tiling, taper), axis=0, dtype=np.float64), 1.0, rtol=1e-5)


@given(
    length=st.integers(1, 200),
    data=st.data(),
    taper=st.sampled_from(TAPERS),
    opens=st.tuples(st.booleans(), st.booleans()),
)
def test_weights_lie_in_their_range_and_have_two_equal_ends(
    length: int, data: st.DataObject, taper: Taper, opens: tuple[bool, bool]
) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    weights = axis_weights(length, overlap_px=overlap, taper=taper, open_start=opens[0], open_stop=opens[1])
    turned = axis_weights(length, overlap_px=overlap, taper=taper, open_start=opens[1], open_stop=opens[0])
    assert weights.shape == (length,)
    assert weights.dtype == np.float32
    assert ((weights > 0) & (weights <= 1)).all()
    np.testing.assert_allclose(turned[::-1], weights, rtol=1e-6)


@pytest.mark.parametrize("taper", TAPERS)
def test_a_border_of_the_scene_keeps_its_weight(taper: Taper) -> None:
    weights = axis_weights(64, overlap_px=16, taper=taper, open_start=False, open_stop=True)
    assert (weights[:48] == 1).all()
    assert (np.diff(weights[48:]) < 0).all()
