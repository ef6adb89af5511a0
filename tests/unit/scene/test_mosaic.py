"""Files side by side are one scene: its pixels are those of the picture that they were cut from."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning

from pipeline.errors import InputError
from pipeline.grid import Window
from pipeline.scene import open_scene
from pipeline.scene.open import Opening, look_at
from pipeline.scene.sources import SourcesScene
from tests.scenes import NORTH_UP, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (70, 90)


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint16]], Path]:
    """Four quarters that overlap a little, their corners rounded as geotransforms are; one is missing a corner."""
    data = smooth_values(2, SHAPE)
    folder = tmp_path_factory.mktemp("chips")
    for k, (row, col) in enumerate(((0, 0), (0, 40), (30, 0), (30, 40))):
        part = data[:, row : row + 40, col : col + 50].copy()
        if k == 0:
            part[:, 35:, 45:] = 0
        place = NORTH_UP @ Affine.translation(col + 1e-3, row - 1e-3)
        write_scene(folder / f"chip{k}.tif", part, transform=place if k else NORTH_UP, nodata=0)
    return data, folder


@settings(max_examples=15)
@given(data=st.data())
def test_windows_of_a_mosaic_are_those_of_the_picture(
    chips: tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint16]], Path], data: st.DataObject
) -> None:
    picture, folder = chips
    scene = open_scene(folder)
    assert scene.geobox.shape == SHAPE
    row, col = data.draw(st.integers(0, SHAPE[0] - 1)), data.draw(st.integers(0, SHAPE[1] - 1))
    row_stop, col_stop = data.draw(st.integers(row + 1, SHAPE[0])), data.draw(st.integers(col + 1, SHAPE[1]))
    block = scene.read_block(Window.from_bounds(row, col, row_stop, col_stop))
    assert block.all_valid
    np.testing.assert_array_equal(block.data, picture[:, row:row_stop, col:col_stop])


def test_the_first_given_wins_and_gaps_have_no_data(tmp_path: Path) -> None:
    one, two = np.full((1, 20, 20), 5, np.uint16), np.full((1, 20, 20), 9, np.uint16)
    a = write_scene(tmp_path / "a.tif", one)
    b = write_scene(tmp_path / "b.tif", two, transform=NORTH_UP @ Affine.translation(10, 15))
    scene = open_scene([a, b])
    assert scene.geobox.shape == (35, 30)
    block = scene.read_block(Window(row_off=0, col_off=0, height=35, width=30))
    assert (block.data[0, 15:20, 10:20] == 5).all()
    assert (open_scene([b, a]).read(Window(row_off=20, col_off=0, height=5, width=30))[0, :, 10:] == 9).all()
    assert open_scene([a]).fingerprint() == open_scene(a).fingerprint()
    assert not block.valid[0, :10, 25].any()
    assert block.valid[0].sum() == 400 + 400 - 50
    coarse = scene.select([1])
    assert isinstance(coarse, SourcesScene)
    assert coarse.geobox == scene.geobox


def test_what_makes_no_mosaic_is_refused(tmp_path: Path) -> None:
    first = write_scene(tmp_path / "a.tif", smooth_values(1, (20, 20)))
    shifted = NORTH_UP @ Affine.translation(20.4, 0)
    for name, wrong in {
        "off": {"transform": shifted},
        "size": {"transform": NORTH_UP @ Affine.scale(2)},
        "crs": {"crs": "EPSG:32634"},
        "far": {"transform": NORTH_UP @ Affine.translation(5e6, 5e6)},
    }.items():
        other = write_scene(tmp_path / f"{name}.tif", smooth_values(1, (20, 20)), **wrong)
        with pytest.raises(InputError, match="IN-059"):
            open_scene([first, other])
    lacks: dict[str, Any] = {"nowhere": {"crs": None}, "unplaced": {"transform": None}}
    for name, lacking in lacks.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            other = write_scene(tmp_path / f"{name}.tif", smooth_values(1, (20, 20)), **lacking)
        with pytest.raises(InputError, match="so nothing says where it lies") as caught:
            look_at([first, other], Opening(allow_no_crs=True, any_grid=True))
        assert caught.value.code == "IN-059"
    bands = write_scene(tmp_path / "bands.tif", smooth_values(2, (20, 20)), transform=shifted)
    with pytest.raises(InputError, match="IN-059"):
        open_scene([first, bands])
    with pytest.raises(InputError, match="IN-017"):
        open_scene([])
    scene = look_at([first, tmp_path / "off.tif"], Opening(any_grid=True))
    assert isinstance(scene, SourcesScene)
    assert scene.geobox.shape == (20, 41)
