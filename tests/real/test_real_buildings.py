"""Straight walls for the hand-drawn buildings of a dense town."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely

from pipeline.vector import Regularization, polygonize, to_geodataframe

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("real")]

MASK = Path(__file__).parents[3] / "shared" / "data" / "labels" / "banepa_buildings_mask.tif"


@pytest.mark.skipif(not MASK.exists(), reason="no real data")
def test_a_town_gets_straight_walls(tmp_path: Path) -> None:
    with rasterio.open(MASK) as file:
        profile, pixels = file.profile, file.read(1)[::2, ::2]
    height, width = pixels.shape
    profile.update(height=height, width=width, transform=profile["transform"] @ rasterio.Affine.scale(2))
    with rasterio.open(tmp_path / "m.tif", "w", **profile) as file:
        file.write(pixels, 1)
    frames = []
    for wanted in (None, Regularization(frozenset({1}), 0.8)):
        with polygonize(tmp_path / "m.tif", scratch=tmp_path, include=frozenset({1}), regularize=wanted) as polygons:
            frames.append(to_geodataframe(polygons).geometry.to_numpy())
            outcome = polygons.regularized
    before, after = frames
    assert outcome is not None
    assert outcome.straight > 0.7 * len(before)
    assert shapely.is_valid(after).all()
    assert shapely.coverage_is_valid(after)
    shared = shapely.area(shapely.intersection(before, after))
    iou = shared / (shapely.area(before) + shapely.area(after) - shared)
    assert iou.min() >= 0.8 - 1e-9
    assert np.median(iou) > 0.95
