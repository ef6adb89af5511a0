"""B12, C23, C24: a scene far larger than what is in it. Blocks that were never written are nodata, and skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

import pipeline as sm
from pipeline.store import read_ledger
from tests.scenes import NORTH_UP, UTM, save_threshold_model, smooth_values

if TYPE_CHECKING:
    from pathlib import Path

_ISLAND = 512


@pytest.mark.parametrize("side", [6_000, pytest.param(70_000, marks=pytest.mark.slow)])
def test_b12_of_a_sparse_scene_only_the_blocks_that_are_there_are_computed(tmp_path: Path, side: int) -> None:
    """Two islands of 512 px, one of them at the far end; the file has as many bytes as they need."""
    save_threshold_model(tmp_path / "model")
    far = side // 512 * 512 - 512
    islands = {
        (1024, 512): smooth_values(2, (_ISLAND, _ISLAND)),
        (far, far): smooth_values(2, (_ISLAND, _ISLAND), seed=1),
    }
    layout = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "SPARSE_OK": True,
        "nodata": 0,
    }
    shape = {"height": side, "width": side, "count": 2, "dtype": "uint16", "crs": UTM, "transform": NORTH_UP}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", BIGTIFF="YES", **shape, **layout) as file:
        for (row, col), data in islands.items():
            file.write(data, window=Window(col, row, _ISLAND, _ISLAND))
    out = tmp_path / "out"
    made = sm.segment(
        tmp_path / "scene.tif", tmp_path / "model", out, bands="1,2", patch=514, tile=1, vectors="none", keep=True
    )
    records = read_ledger(out / ".scenemask" / "ledger")
    written = [r for r in records.values() if r.kind == "written"]
    assert 2 <= len(written) <= 8, "an island touches four tiles at most"
    assert len(records) > (side // 600) ** 2
    assert sum(r.valid_px for r in written) == 2 * _ISLAND**2
    with rasterio.open(made.mask_path) as mask:
        assert mask.shape == (side, side)
        for (row, col), data in islands.items():
            found = mask.read(1, window=Window(col, row, _ISLAND, _ISLAND))
            np.testing.assert_array_equal(found, data[0] > 500)
        assert (mask.read(1, window=Window(2048, 2048, 2000, 2000)) == 255).all()
