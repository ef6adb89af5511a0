"""The result does not depend on tiles, and validity does what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import Tiling, blend_tiling, exact_tiling
from pipeline.infer import axis_weights
from pipeline.model import Model, ModelSpec, Scaling, model_from_module
from tests.networks import predict_by_tiles, random_scene, reader, unet_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (150, 203)


def _exact(model: Model, tile: int, shape: tuple[int, int] = SHAPE) -> Tiling:
    traits = model.traits
    assert traits.halo_px is not None
    return exact_tiling(
        shape,
        core_hw=(32, 32),
        halo_px=traits.halo_px,
        stride=traits.stride,
        margin_px=traits.margin_px,
        sizes=traits.sizes,
        tile_px=tile,
    )


def _blend(model: Model, tile: int, shape: tuple[int, int] = SHAPE, overlap: int = 20) -> Tiling:
    traits = model.traits
    return blend_tiling(
        shape,
        patch_px=64,
        overlap_px=overlap,
        stride=traits.stride,
        margin_px=traits.margin_px,
        sizes=traits.sizes,
        tile_px=tile,
    )


@pytest.fixture(scope="module")
def model() -> Model:
    return unet_model(depth=2)


@pytest.fixture(scope="module")
def scene() -> NDArray[np.uint16]:
    return random_scene(2, SHAPE, seed=7)


@pytest.mark.parametrize("tile", [32, 64, 128, 1000])
def test_exact_bytes_do_not_depend_on_the_tile(model: Model, scene: NDArray[Any], tile: int) -> None:
    one = predict_by_tiles(model, _exact(model, 1), reader(scene))
    other = predict_by_tiles(model, _exact(model, tile), reader(scene))
    assert one.mask.tobytes() == other.mask.tobytes()
    assert one.probabilities.tobytes() == other.probabilities.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("taper", ["hann", "gaussian", "linear"])
@pytest.mark.parametrize("tile", [90, 200, 1000])
def test_blend_bytes_do_not_depend_on_the_tile(scene: NDArray[Any], tile: int, taper: str) -> None:
    model = unet_model(depth=2, norm="instance")
    assert model.traits.tiling == "blend"
    one = predict_by_tiles(model, _blend(model, 1), reader(scene), taper=taper)
    other = predict_by_tiles(model, _blend(model, tile), reader(scene), taper=taper)
    assert one.mask.tobytes() == other.mask.tobytes()
    assert one.probabilities.tobytes() == other.probabilities.tobytes()  # type: ignore[union-attr]


@given(length=st.integers(8, 200), overlap=st.integers(1, 100), taper=st.sampled_from(["hann", "gaussian", "linear"]))
def test_tapers_share_every_pixel_out(length: int, overlap: int, taper: Any) -> None:
    """Normalised by their sum, the weights of all patches over any pixel sum to 1; none of them is 0."""
    step = max(1, length - min(overlap, length - 1))
    count = 4
    total = np.zeros(step * (count - 1) + length, np.float64)
    parts = []
    for index in range(count):
        weights = axis_weights(
            length, overlap_px=length - step, taper=taper, open_start=index > 0, open_stop=index < count - 1
        )
        assert (weights > 0).all()
        parts.append((index * step, weights))
        total[index * step : index * step + length] += weights
    normalised = np.zeros_like(total)
    for start, weights in parts:
        normalised[start : start + length] += weights / total[start : start + length]
    assert np.allclose(normalised, 1.0, atol=1e-6)
    if taper in ("hann", "linear") and length - step <= length // 2:
        assert np.allclose(total, 1.0, atol=1e-6)


def test_no_taper_at_the_scene_border() -> None:
    assert axis_weights(10, overlap_px=4, taper="hann", open_start=False, open_stop=True)[:6].tolist() == [1.0] * 6


def _identity() -> Model:
    """Three bands in, the same three values out as logits."""
    network = torch.nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3)[:, :, None, None])
    spec = ModelSpec(name="identity", bands=("a", "b", "c"), classes=("a", "b", "c"), scaling=Scaling.identity(3))
    return model_from_module(network, spec)


@pytest.mark.parametrize("make", [_exact, _blend])
def test_an_identity_network_gives_the_scene_back_without_a_seam(make: Any) -> None:
    data = np.random.default_rng(0).normal(0, 3, (3, *SHAPE)).astype(np.float32)
    result = predict_by_tiles(_identity(), make(_identity(), 1), reader(data))
    expected = torch.softmax(torch.from_numpy(data), 0).numpy()
    assert result.probabilities is not None
    assert np.abs(result.probabilities - expected).max() < 1e-6
    assert (result.mask == data.argmax(axis=0)).all()


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "bilinear"])
def test_a_constant_scene_repeats_with_the_stride(upsampling: str) -> None:
    """Transposed convolutions tell the phases of a stride apart, the others do not."""
    model = unet_model(depth=2, upsampling=upsampling)
    data = np.full((2, 97, 130), 640, np.uint16)
    probabilities = predict_by_tiles(model, _exact(model, 1, (97, 130)), reader(data)).probabilities
    assert probabilities is not None
    period = 1 if upsampling != "transposed" else model.traits.stride
    assert np.abs(probabilities[:, period:] - probabilities[:, :-period]).max() < 1e-6
    assert np.abs(probabilities[:, :, period:] - probabilities[:, :, :-period]).max() < 1e-6
    if period > 1:
        assert np.abs(probabilities[:, 1:] - probabilities[:, :-1]).max() > 1e-3


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), blend=st.booleans())
def test_every_valid_pixel_has_a_class_and_no_other(seed: int, blend: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(seed)
    model = unet_model(depth=2)
    valid = rng.random((2, *SHAPE)) > 0.1
    valid[:, 20:70, 30:150] = False
    tiling = (_blend if blend else _exact)(model, 1)
    result = predict_by_tiles(model, tiling, reader(random_scene(2, SHAPE, seed=seed), valid))
    usable = valid.all(axis=0)
    assert (result.mask[usable] < 3).all()
    assert (result.mask[~usable] == 255).all()
    assert result.probabilities is not None
    assert np.isnan(result.probabilities[:, ~usable]).all()
    assert np.isfinite(result.probabilities[:, usable]).all()


def test_pixels_farther_than_the_halo_from_a_gap_are_unaffected(model: Model, scene: NDArray[Any]) -> None:
    valid = np.ones((1, *SHAPE), bool)
    valid[:, 60:80, 90:110] = False
    gap = predict_by_tiles(model, _exact(model, 1), reader(scene, valid)).probabilities
    whole = predict_by_tiles(model, _exact(model, 1), reader(scene)).probabilities
    assert gap is not None
    assert whole is not None
    assert model.traits.halo_px is not None
    reach = model.traits.halo_px + model.traits.stride
    near = np.zeros(SHAPE, bool)
    near[60 - reach : 80 + reach, 90 - reach : 110 + reach] = True
    assert (gap[:, ~near] == whole[:, ~near]).all()
    around = near.copy()
    around[60:80, 90:110] = False
    assert (gap[:, around] != whole[:, around]).any()


def test_what_lies_under_nodata_does_not_matter(model: Model, scene: NDArray[Any]) -> None:
    valid = np.random.default_rng(1).random((1, *SHAPE)) > 0.2
    other = np.where(valid, scene, 65535).astype(np.uint16)
    first = predict_by_tiles(model, _exact(model, 1), reader(scene, valid))
    second = predict_by_tiles(model, _exact(model, 1), reader(other, valid))
    assert first.mask.tobytes() == second.mask.tobytes()


def test_nan_under_nodata_never_reaches_the_network() -> None:
    model = unet_model(depth=2)
    data = random_scene(2, SHAPE).astype(np.float32)
    valid = np.random.default_rng(1).random((1, *SHAPE)) > 0.2
    result = predict_by_tiles(model, _exact(model, 1), reader(np.where(valid, data, np.nan), valid))
    assert (result.mask[valid[0]] < 3).all()


def test_patches_without_a_valid_pixel_are_skipped(model: Model, scene: NDArray[Any]) -> None:
    valid = np.zeros((1, *SHAPE), bool)
    valid[:, :10, :10] = True
    result = predict_by_tiles(model, _exact(model, 1), reader(scene, valid))
    assert result.patches == 1
    assert (result.mask[:10, :10] < 3).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (41, 1), (7, 5)])
@pytest.mark.parametrize("padding", ["reflect", "edge", "zero", "network"])
def test_c21_scenes_smaller_than_a_patch(shape: tuple[int, int], padding: str) -> None:
    model = unet_model(depth=2)
    traits = model.traits
    tiling = exact_tiling(
        shape,
        core_hw=(32, 32),
        halo_px=traits.halo_px or 0,
        stride=traits.stride,
        margin_px=0,
        sizes=traits.sizes,
        tile_px=1,
        network_padding=padding == "network",
    )
    result = predict_by_tiles(model, tiling, reader(random_scene(2, shape)), padding=padding)
    assert result.mask.shape == shape
    assert (result.mask < 3).all()
