"""A smaller halo than the network's own: as small as a tolerance allows, by tiles that are really computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr

from pipeline.grid import exact_tiling
from pipeline.infer import device_thread
from pipeline.model import EngineSpec, Model
from pipeline.run.halo import tolerated_halo
from pipeline.scene import open_scene
from tests.networks import predict_by_tiles, random_scene, reader, unet_model, whole_forward

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (304, 320)
WHOLE, STRIDE = 48, 8


@pytest.fixture(scope="module")
def model() -> Model:
    made = unet_model(depth=3)
    assert (made.traits.halo_px, made.traits.stride) == (WHOLE, STRIDE)
    return made


@pytest.fixture(scope="module")
def noise() -> NDArray[np.uint16]:
    return random_scene(2, SHAPE)


@pytest.fixture(scope="module")
def errors(model: Model, noise: NDArray[np.uint16]) -> dict[int, float]:
    """Largest |Δp| between tiles with each halo and one whole forward, where the rim of the scene is not seen."""
    inside = (slice(None), slice(WHOLE, -WHOLE), slice(WHOLE, -WHOLE))
    expected = whole_forward(model, noise, before=WHOLE, after_hw=(WHOLE, WHOLE))[inside]
    found = {}
    for halo in range(16, WHOLE + 1, STRIDE):
        tiling = exact_tiling(
            SHAPE, core_hw=(56, 56), halo_px=halo, stride=STRIDE, margin_px=0, sizes=model.traits.sizes, tile_px=64
        )
        probabilities = predict_by_tiles(model, tiling, reader(noise)).probabilities
        assert probabilities is not None
        found[halo] = float(np.abs(probabilities[inside] - expected).max())
    return found


@pytest.mark.parametrize(("tolerance", "expected"), [(0.2, 24), (0.1, 32), (0.03, 40), (1e-3, WHOLE)])
def test_a_tolerated_halo_is_the_smallest_whose_tiles_keep_within_the_tolerance(
    model: Model, noise: NDArray[np.uint16], errors: dict[int, float], tolerance: float, expected: int
) -> None:
    """Sampled windows stand for the scene: these tolerances lie clear of what either measures."""
    spec = EngineSpec(backend="torch", device="cpu", precision="float32", threads=2, one_size=False)
    scene = open_scene(xr.DataArray(noise, dims=("band", "y", "x")), allow_no_crs=True)
    halo, error = tolerated_halo(scene, model, spec, device_thread(threads=2), tolerance=tolerance)
    assert halo == expected
    assert errors[halo] <= tolerance < errors[halo - STRIDE]
    assert error <= tolerance
    if halo < WHOLE:
        assert errors[halo] / 2 < error < errors[halo] * 2
    else:
        assert error == 0
