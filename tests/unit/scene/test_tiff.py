from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scene.datasets import open_dataset
from pipeline.scene.tiff import TiffLayout, read_tiff_layout
from tests.unit.scene.rasters import noise, tiff_pages, write_tif

if TYPE_CHECKING:
    from pathlib import Path


def layout_of(path: Path) -> TiffLayout | None:
    with path.open("rb") as file:
        return read_tiff_layout(file)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_all_flavours_are_followed(tmp_path: Path, big: bool, order: str) -> None:  # noqa: FBT001
    path = tmp_path / "p.tif"
    path.write_bytes(tiff_pages(3, big=big, order=order))
    layout = layout_of(path)
    assert layout is not None
    assert layout.needed_bytes == path.stat().st_size
    assert (layout.num_blocks, layout.num_sparse, layout.num_images) == (2, 0, 3)
    with open_dataset(str(path), "GTiff") as dataset:
        assert np.unique(dataset.read()).tolist() == [1]


def test_the_fixture_is_a_real_tiff(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    path.write_bytes(tiff_pages(2))
    with open_dataset(str(path), "GTiff") as dataset:
        assert len(dataset.subdatasets) == 2


def test_the_block_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    path.write_bytes(tiff_pages(2, cut_block=1))
    layout = layout_of(path)
    assert layout is not None
    assert layout.needed_bytes == 10_032
    assert layout.missing == "block 2 of 2 of directory 2"


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_block_table_equals_gdals(tmp_path: Path, interleave: str) -> None:
    options = {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "zstd", "interleave": interleave}
    path = write_tif(tmp_path / "g.tif", noise(3, 100, 70), **options)
    layout = layout_of(path)
    assert layout is not None
    per_band = 7 * 3
    assert layout.num_blocks == per_band * (3 if interleave == "band" else 1)
    assert layout.needed_bytes == path.stat().st_size
    assert layout.missing == ""


def test_overviews_and_masks_are_no_images(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "o.tif", noise(1, 256, 256), tiled=True, blockxsize=64, blockysize=64)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.ones((256, 256), bool))
        dataset.build_overviews([2, 4])
    layout = layout_of(path)
    assert layout is not None
    assert layout.num_images == 1
    assert layout.num_blocks == 16


@given(st.binary(max_size=300), st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b""]))
def test_rubbish_never_raises(tmp_path_factory: pytest.TempPathFactory, body: bytes, magic: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish.tif"
    path.write_bytes(magic + body)
    layout = layout_of(path)
    assert layout is None or layout.needed_bytes >= path.stat().st_size
