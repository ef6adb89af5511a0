from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
import shapely

from pipeline.errors import UsageError
from pipeline.grid import Window
from pipeline.scene import SyntheticScene, open_scene, write_synthetic_scene
from pipeline.scene.synthetic_map import make_country
from pipeline.scene.synthetic_paint import BUILDING, FOREST, LAND, ROAD, WATER, paint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SyntheticScene:
    return write_synthetic_scene(tmp_path_factory.mktemp("world"), size_px=1024, seed=0)


def test_files_are_what_they_should_be(small: SyntheticScene) -> None:
    scene = open_scene(small.scene_path)
    assert [b.name for b in scene.bands] == ["blue", "green", "red", "nir"]
    assert scene.dtype == np.uint16
    assert scene.nodata == 0
    assert scene.warnings == ()
    with rasterio.open(small.truth_path) as truth:
        assert truth.shape == scene.geobox.shape
        assert truth.transform == scene.geobox.transform
        assert truth.crs.to_epsg() == 32633
        assert truth.nodata == small.legend.nodata == 255
        classes = truth.read(1)
    assert set(np.unique(classes)) == {0, 1, 2, 3, 4, 255}
    block = scene.read_block(Window(row_off=0, col_off=0, height=1024, width=1024))
    np.testing.assert_array_equal(block.valid_everywhere(), classes != 255)
    assert 0.05 < (classes == 255).mean() < 0.08


def test_windows_halve_the_scene(small: SyntheticScene) -> None:
    train, test = small.train_window, small.test_window
    assert train.col_stop == test.col_off
    assert train.num_pixels + test.num_pixels == 1024**2
    with rasterio.open(small.truth_path) as truth:
        classes = truth.read(1)
    for window in (train, test):
        half = classes[:, window.col_off : window.col_stop]
        assert set(np.unique(half)) == {0, 1, 2, 3, 4, 255}


def test_spectra_are_plausible() -> None:
    colour, classes = paint(Window(row_off=0, col_off=0, height=1024, width=1024), seed=0)
    blue, green, red, nir = colour
    ndvi = (nir - red) / (nir + red)
    assert np.median(ndvi[classes == FOREST]) > 0.6
    assert np.median(ndvi[classes == WATER]) < 0
    assert abs(np.median(ndvi[classes == ROAD])) < 0.2
    assert np.median(nir[classes == WATER]) < 500 < np.median(nir[classes == BUILDING])
    assert np.ptp(np.percentile(ndvi[classes == LAND], [5, 95])) > 0.5  # bare soil to dense crops
    assert (blue > 0).mean() > 0.999
    assert green.max() < 10_000


@pytest.mark.parametrize("seed", [0, 5])
def test_the_world_is_a_function_of_place(seed: int) -> None:
    around = Window(row_off=300, col_off=100, height=700, width=800)
    colour, classes = paint(around, seed=seed)
    for part in (
        Window(row_off=512, col_off=512, height=300, width=200),
        Window(row_off=300, col_off=700, height=64, width=200),
        Window(row_off=700, col_off=100, height=300, width=300),
    ):
        some_colour, some_classes = paint(part, seed=seed)
        rows, cols = part.slices_in(around)
        np.testing.assert_array_equal(some_classes, classes[rows, cols])
        np.testing.assert_array_equal(some_colour, colour[:, rows, cols])


def test_shapes_do_not_depend_on_the_window_they_are_asked_for() -> None:
    wide = Window(row_off=-500, col_off=3000, height=2500, width=2500)
    country = make_country(wide, seed=3)
    rng = np.random.default_rng(0)
    houses = 0
    for _ in range(150):
        row, col = int(rng.integers(-400, 1800)), int(rng.integers(3100, 5300))
        box = shapely.box(col, row, col + 100, row + 100)
        local = make_country(Window(row_off=row, col_off=col, height=100, width=100), seed=3)
        here = [
            np.sort(shapely.area(h[shapely.intersects(h, box)])) for h in (local.houses.outline, country.houses.outline)
        ]
        np.testing.assert_allclose(here[0], here[1])
        roads = [sorted(r.intersection(box).area for r in c.roads if r.intersects(box)) for c in (local, country)]
        assert roads[0] == pytest.approx(roads[1])
        houses += len(here[0])
    assert houses > 50


def test_same_seed_same_bytes_other_seed_other_world(tmp_path: Path, small: SyntheticScene) -> None:
    again = write_synthetic_scene(tmp_path / "again", size_px=1024, seed=0)
    other = write_synthetic_scene(tmp_path / "other", size_px=128, seed=1)
    digests = [hashlib.sha256(p.read_bytes()).digest() for p in (small.scene_path, again.scene_path)]
    assert digests[0] == digests[1]
    window = Window(row_off=0, col_off=0, height=128, width=128)
    assert not np.array_equal(open_scene(other.scene_path).read(window), open_scene(small.scene_path).read(window))


def test_progress_and_odd_sizes(tmp_path: Path) -> None:
    seen: list[float] = []
    world = write_synthetic_scene(tmp_path, size_px=1100, progress=seen.append)
    assert seen == [0.25, 0.5, 0.75, 1.0]
    assert open_scene(world.scene_path).geobox.shape == (1100, 1100)
    with pytest.raises(UsageError, match="CF-013"):
        write_synthetic_scene(tmp_path, size_px=10)


def test_roads_and_houses_are_wide_enough() -> None:
    """Erosion by 2 px leaves something of every road; by 5 px of every house that the window holds whole."""
    from scipy import ndimage

    _, classes = paint(Window(row_off=0, col_off=0, height=1024, width=1024), seed=0)
    houses, count = ndimage.label(classes == BUILDING)
    sizes = ndimage.sum_labels(classes == BUILDING, houses, np.arange(1, count + 1))
    inner = np.zeros(count + 1, bool)
    inner[np.unique(houses[16:-16, 16:-16])] = True
    assert count > 50
    assert np.mean(sizes[inner[1:]] >= 12 * 12) > 0.95
    core = ndimage.binary_erosion(classes == ROAD, iterations=2)
    assert core.sum() > 0.25 * (classes == ROAD).sum()


@pytest.mark.slow
def test_memory_does_not_depend_on_size(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pipeline.scene import write_synthetic_scene;"
        "write_synthetic_scene(sys.argv[1], size_px=int(sys.argv[2]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", code, str(tmp_path / str(size)), str(size)]))
        for size in (2048, 8192)
    ]
    assert peaks[1] < 1.15 * peaks[0]
    assert peaks[1] < 500_000  # KiB
