"""Quality layers: each pixel of the scene takes the layer's pixel under its centre, as GDAL's nearest does."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.warp import Resampling, reproject

from pipeline.errors import PipelineError
from pipeline.grid import Window
from pipeline.scene import Limits, open_quality_layer, open_scene
from pipeline.scene import sources as module
from pipeline.scene.raster import RasterScene
from tests.unit.scene.rasters import noise, write_tif

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (90, 110)
GRID = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
VALUES = (3, 8, 9)


def classes(shape: tuple[int, int], seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 12, (1, *shape)).astype(np.uint8)


LAYERS: dict[str, tuple[tuple[int, int], Affine, str]] = {
    "20 m": ((45, 55), GRID @ Affine.scale(2), "EPSG:32633"),
    "60 m, beyond the scene": ((20, 20), GRID @ Affine.translation(-7, -9) @ Affine.scale(6), "EPSG:32633"),
    "finer": ((450, 550), GRID @ Affine.scale(0.2), "EPSG:32633"),
    "south-up": ((50, 60), Affine(23, 0, 499_901.3, 0, 23, 4_999_001.7), "EPSG:32633"),
    "rotated": ((120, 130), GRID @ Affine.rotation(20) @ Affine.translation(-31.3, -47.7), "EPSG:32633"),
    "degrees": ((150, 150), Affine(1e-4, 0, 14.9991, 0, -1e-4, 45.1551), "EPSG:4326"),
    "next zone": ((120, 140), Affine(15, 0, 28_100, 0, -15, 5_017_800), "EPSG:32634"),
}


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    return open_scene(write_tif(tmp_path / "scene.tif", noise(2, *SHAPE), transform=GRID, crs="EPSG:32633"))


def whole(shape: tuple[int, int] = SHAPE) -> Window:
    return Window(row_off=0, col_off=0, height=shape[0], width=shape[1])


@pytest.mark.parametrize("kind", LAYERS)
def test_equals_gdals_nearest(tmp_path: Path, scene: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, transform, crs = LAYERS[kind]
    data = classes(shape)
    path = write_tif(tmp_path / "scl.tif", data, transform=transform, crs=crs)
    expected = np.full(SHAPE, 255, np.uint8)
    reproject(
        data[0], expected, src_transform=transform, src_crs=crs, dst_transform=GRID, dst_crs="EPSG:32633",
        resampling=Resampling.nearest, init_dest_nodata=False, tolerance=0, dst_nodata=255,
    )  # fmt: skip
    layer = open_quality_layer(scene, str(path), VALUES, access=None)
    got = layer.mask(whole())
    assert 0.5 < got.mean() < 0.95
    assert np.count_nonzero(got != ~np.isin(expected, VALUES)) <= (0 if crs == "EPSG:32633" else 5)
    monkeypatch.setattr(module, "_MOST_SOURCE_PX", 200)  # piece by piece
    np.testing.assert_array_equal(layer.mask(whole()), got)


@given(row=st.integers(0, 80), col=st.integers(0, 100), height=st.integers(1, 90), width=st.integers(1, 110),
       kind=st.sampled_from(sorted(LAYERS)))  # fmt: skip
def test_a_windows_mask_is_part_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, row: int, col: int, height: int, width: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("law")
    shape, transform, crs = LAYERS[kind]
    made = open_scene(write_tif(folder / "scene.tif", noise(1, *SHAPE), transform=GRID, crs="EPSG:32633"))
    path = write_tif(folder / "scl.tif", classes(shape), transform=transform, crs=crs)
    layer = open_quality_layer(made, str(path), VALUES, access=None)
    window = Window.from_bounds(row, col, min(row + height, SHAPE[0]), min(col + width, SHAPE[1]))
    np.testing.assert_array_equal(layer.mask(window), layer.mask(whole())[window.slices_in(whole())])


def test_a_band_of_the_scene_by_name(tmp_path: Path) -> None:
    data = np.concatenate([noise(1, 30, 40), classes((30, 40)).astype(np.uint16)])
    made = open_scene(write_tif(tmp_path / "s.tif", data, descriptions=("red", "SCL")), bands=["red"])
    layer = open_quality_layer(made, "scl", VALUES, access=None)
    np.testing.assert_array_equal(layer.mask(whole((30, 40))), ~np.isin(data[1], VALUES))
    assert len(made.bands) == 1


def test_a_class_map_with_colours_is_taken(tmp_path: Path, scene: Any) -> None:
    """As a layer; as a scene its numbers would be no measurements."""
    data = classes(SHAPE)
    path = write_tif(tmp_path / "scl.tif", data, transform=GRID, crs="EPSG:32633", photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {3: (255, 0, 0, 255)})
    with pytest.raises(PipelineError, match="palette"):
        open_scene(path)
    layer = open_quality_layer(scene, str(path), VALUES, access=None)
    np.testing.assert_array_equal(layer.mask(whole()), ~np.isin(data[0], VALUES))


def test_where_the_layer_ends_nothing_is_left_out_and_that_is_told(tmp_path: Path, scene: Any) -> None:
    path = write_tif(tmp_path / "l.tif", np.full((1, 90, 55), 3, np.uint8), transform=GRID, crs="EPSG:32633")
    layer = open_quality_layer(scene, str(path), (3,), access=None)
    expected = np.ones(SHAPE, bool)
    expected[:, :55] = False
    np.testing.assert_array_equal(layer.mask(whole()), expected)
    assert layer.warnings == ("the mask layer covers 50% of the scene; elsewhere nothing is left out.",)
    full = write_tif(tmp_path / "f.tif", classes((45, 55)), transform=GRID @ Affine.scale(2), crs="EPSG:32633")
    assert open_quality_layer(scene, str(full), (3,), access=None).warnings == ()


def test_a_window_reads_little_of_the_layer(tmp_path: Path, scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tif(tmp_path / "l.tif", classes((45, 55)), transform=GRID @ Affine.scale(2), crs="EPSG:32633")
    layer = pickle.loads(pickle.dumps(open_quality_layer(scene, str(path), (3,), access=None)))
    read = []
    plain = RasterScene.read_block
    monkeypatch.setattr(RasterScene, "read_block", lambda self, window: [read.append(window), plain(self, window)][1])
    assert Limits(layer=layer).mask(Window(row_off=40, col_off=40, height=20, width=20)) is not None
    assert sum(window.num_pixels for window in read) <= (10 + 6) ** 2


def test_nodata_is_left_out_where_it_is_listed(tmp_path: Path, scene: Any) -> None:
    data = classes(SHAPE)
    path = write_tif(tmp_path / "l.tif", data, transform=GRID, crs="EPSG:32633", nodata=0)
    layer = open_quality_layer(scene, str(path), (0, 3), access=None)
    np.testing.assert_array_equal(layer.mask(whole()), ~np.isin(data[0], (0, 3)))


def test_refusals(tmp_path: Path, scene: Any) -> None:
    far = GRID @ Affine.translation(1000, 0)
    here = {"transform": GRID, "crs": "EPSG:32633"}
    cases: list[tuple[Any, tuple[int, ...], str]] = [
        (tmp_path / "none.tif", VALUES, "IN-001"),
        (write_tif(tmp_path / "two.tif", noise(2, 9, 9), **here), VALUES, "IN-080"),
        (write_tif(tmp_path / "bare.tif", classes(SHAPE), crs=None, transform=GRID), VALUES, "IN-081"),
        (write_tif(tmp_path / "far.tif", classes(SHAPE), transform=far, crs="EPSG:32633"), VALUES, "IN-082"),
        (write_tif(tmp_path / "u8.tif", classes(SHAPE), **here), (256, -1), "CF-101"),
    ]
    for path, values, code in cases:
        with pytest.raises(PipelineError) as caught:
            open_quality_layer(scene, str(path), values, access=None)
        assert caught.value.code == code, path
        assert caught.value.fix


def test_digests_follow_the_file(tmp_path: Path, scene: Any) -> None:
    here = {"transform": GRID, "crs": "EPSG:32633"}
    one = open_quality_layer(scene, str(write_tif(tmp_path / "a.tif", classes(SHAPE), **here)), (3,), access=None)
    two = open_quality_layer(scene, str(write_tif(tmp_path / "b.tif", classes(SHAPE, 2), **here)), (3,), access=None)
    assert one.digest() == one.digest() != two.digest()
    assert Limits(layer=one).identity() == {"aoi": None, "mask_layer": one.digest()}
    assert Limits().mask(whole()) is None
