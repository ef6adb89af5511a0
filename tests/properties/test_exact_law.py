"""The promise that everything rests on: tiled equals one forward over the whole scene."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid import Tiling, exact_tiling, round_up
from tests.networks import predict_by_tiles, random_scene, reader, unet_model, whole_forward

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.model import Model

TIE = 2e-5


@cache
def _model(depth: int, width: int, upsampling: str, padding: str = "same", *, skips: bool = True) -> Model:
    return unet_model(depth=depth, width=width, upsampling=upsampling, padding=padding, skips=skips)


def _tiling(model: Model, shape: tuple[int, int], core: int, tile: int, *, network: bool = False) -> Tiling:
    traits = model.traits
    assert traits.halo_px is not None
    return exact_tiling(
        shape,
        core_hw=(core, core),
        halo_px=traits.halo_px,
        stride=traits.stride,
        margin_px=traits.margin_px,
        sizes=traits.sizes,
        tile_px=tile,
        network_padding=network,
    )


def _reference(model: Model, data: NDArray[Any], *, network: bool = False) -> NDArray[np.float32]:
    traits = model.traits
    assert traits.halo_px is not None
    before = 0 if network else traits.halo_px
    sides = [traits.sizes.at_least(before + n + (0 if network else traits.halo_px)) for n in data.shape[1:]]
    after = (sides[0] - before - data.shape[1], sides[1] - before - data.shape[2])
    return whole_forward(model, data, before=before, after_hw=after)


def _assert_equal(mask: NDArray[Any], got: NDArray[Any], expected: NDArray[Any]) -> None:
    assert np.abs(got - expected).max() <= 1e-5
    top = np.sort(expected, axis=0)
    tie = top[-1] - top[-2] < TIE
    assert ((mask == expected.argmax(axis=0)) | tie).all()


networks = st.tuples(
    st.integers(2, 4), st.sampled_from([2, 4, 6]), st.sampled_from(["transposed", "bilinear", "nearest"])
)
sides = st.integers(1, 120)


@given(network=networks, height=sides, width=sides, core=st.integers(1, 64), tile=st.integers(1, 150))
def test_mirror_padding_equals_one_whole_forward(
    network: tuple[int, int, str], height: int, width: int, core: int, tile: int
) -> None:
    model = _model(*network)
    data = random_scene(2, (height, width), seed=height * 1000 + width)
    result = predict_by_tiles(model, _tiling(model, (height, width), max(core, 16), tile), reader(data))
    assert result.probabilities is not None
    _assert_equal(result.mask, result.probabilities, _reference(model, data))


@given(network=networks, height=sides, width=sides, core=st.integers(1, 64))
def test_network_padding_equals_the_plain_call(
    network: tuple[int, int, str], height: int, width: int, core: int
) -> None:
    model = _model(*network)
    data = random_scene(2, (height, width), seed=height * 1000 + width)
    tiling = _tiling(model, (height, width), max(core, 16), 1, network=True)
    result = predict_by_tiles(model, tiling, reader(data), padding="network")
    assert result.probabilities is not None
    _assert_equal(result.mask, result.probabilities, _reference(model, data, network=True))


@pytest.mark.parametrize("shape", [(40, 57), (388, 200)])
def test_valid_padding_equals_one_whole_forward(shape: tuple[int, int]) -> None:
    model = _model(2, 4, "transposed", "valid")
    data = random_scene(2, shape)
    result = predict_by_tiles(model, _tiling(model, shape, 32, 64), reader(data))
    assert result.probabilities is not None
    _assert_equal(result.mask, result.probabilities, _reference(model, data))


def test_without_skips_the_law_holds_too() -> None:
    model = _model(2, 4, "transposed", skips=False)
    data = random_scene(2, (90, 130), seed=1)
    result = predict_by_tiles(model, _tiling(model, (90, 130), 32, 64), reader(data))
    assert result.probabilities is not None
    _assert_equal(result.mask, result.probabilities, _reference(model, data))


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_a_halo_16_px_short_breaks_the_law(upsampling: str) -> None:
    """The law is sharp: it would notice a halo that is one stride too small."""
    model = _model(4, 4, upsampling)
    traits = model.traits
    assert traits.halo_px is not None
    data = random_scene(2, (300, 300))
    tiling = exact_tiling(
        (300, 300),
        core_hw=(64, 64),
        halo_px=traits.halo_px - 16,
        stride=16,
        margin_px=0,
        sizes=traits.sizes,
        tile_px=64,
    )
    result = predict_by_tiles(model, tiling, reader(data))
    assert result.probabilities is not None
    assert np.abs(result.probabilities - _reference(model, data)).max() > 1e-5


def test_origins_off_the_stride_break_the_law() -> None:
    """Patch origins must be congruent modulo the stride: one pixel off is wrong."""
    model = _model(4, 4, "transposed")
    data = random_scene(2, (300, 300))
    tiling = _tiling(model, (300, 300), 64, 64)
    shifted = dataclasses.replace(
        tiling,
        rows=dataclasses.replace(tiling.rows, lead=tiling.rows.lead + 1, patch=round_up(tiling.rows.patch + 2, 16)),
    )
    result = predict_by_tiles(model, shifted, reader(data))
    assert result.probabilities is not None
    assert np.abs(result.probabilities - _reference(model, data)).max() > 1e-3
