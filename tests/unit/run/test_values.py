"""Scale and offset are applied once, by the scene's word or the model's; values out of range are told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio

from pipeline.grid import Window
from pipeline.model import Model, ModelSpec, Scaling
from pipeline.run.resolve import resolve_scene
from pipeline.run.settings import make_settings
from pipeline.run.values import one_class_warning, range_warning, say_values
from pipeline.scene.rescale import RescaledScene
from tests.scenes import NORTH_UP, UTM, smooth_values, write_scene
from tests.unit.scene.products import write_landsat, write_safe

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.scene import Scene

WINDOW = Window(row_off=0, col_off=0, height=60, width=80)
DATA = smooth_values(1, (60, 80))


def model(*, scale: float = 1.0, offset: float = 0.0, values: str = "stored", mean: float = 0.0) -> Model:
    scaling = Scaling(scale=(scale,), offset=(offset,), mean=(mean,), std=(1.0,))
    spec = ModelSpec.model_validate(
        {"name": "m", "bands": ("red",), "classes": ("a", "b"), "scaling": scaling, "values": values}
    )
    return Model(spec=spec, network=None, digest="")  # type: ignore[arg-type]  # never run


def opened(path: Path, wanted: Model, **options: Any) -> Scene:
    return resolve_scene(path, wanted, make_settings(options))


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    return write_safe(tmp_path, {"B04": (10, DATA[0], NORTH_UP)}, crs=UTM)


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    path = write_scene(tmp_path / "tagged.tif", DATA, names=("red",))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.0001,), (-0.1,)
    return path


def test_c27_an_offset_since_2022_is_taken_off_once(safe: Path) -> None:
    """The network of a model trained on reflectance sees the same reflectance, with and without the offset."""
    wanted = model(scale=1e-4)
    scene = opened(safe, wanted)
    assert isinstance(scene, RescaledScene)
    assert np.array_equal(scene.read(WINDOW), DATA.astype(np.float32) - 1000)
    assert say_values(scene, wanted) == (
        "scaled as the scene says (MTD_MSI: QUANTIFICATION_VALUE, ADD_OFFSET); to the model's stored values: x 1 -1000"
    )
    again = resolve_scene(scene, wanted, make_settings({"values": "model"}))
    assert np.array_equal(again.read(WINDOW), scene.read(WINDOW))


def test_values_that_mean_the_same_are_left_alone(safe: Path) -> None:
    scene = opened(safe, model(scale=1e-4, offset=-0.1))
    assert np.array_equal(scene.read(WINDOW), DATA)
    assert scene.dtype == np.uint16


def test_the_model_or_the_scene_alone_may_be_believed(safe: Path, tagged: Path) -> None:
    assert np.array_equal(opened(safe, model(scale=1e-4), values="model").read(WINDOW), DATA)
    forced = opened(tagged, model(), values="scene").read(WINDOW)
    assert np.abs(forced - (DATA * 1e-4 - 0.1)).max() < 1e-6


def test_a_landsat_scene_serves_a_model_of_reflectance(tmp_path: Path) -> None:
    folder = write_landsat(tmp_path, {"4": DATA[0]}, crs=UTM, transform=NORTH_UP)
    scene = opened(folder, model(scale=1e-4))
    assert np.abs(scene.read(WINDOW) * 1e-4 - (DATA * 2.75e-5 - 0.2)).max() < 1e-6


def test_a_model_of_physical_values_takes_each_scenes_own(safe: Path, tagged: Path) -> None:
    for path in (safe, tagged):
        scene = opened(path, model(values="physical"))
        assert np.abs(scene.read(WINDOW) - (DATA * 1e-4 - 0.1)).max() < 1e-6


def test_a_model_of_raw_values_is_told_of_offsets(safe: Path) -> None:
    scene = opened(safe, model(mean=500.0))
    assert np.array_equal(scene.read(WINDOW), DATA)
    assert any("stored with an offset" in text for text in scene.warnings)


def test_a_tag_in_another_unit_is_not_believed(tagged: Path) -> None:
    with rasterio.open(tagged, "r+") as file:
        file.scales, file.offsets = (0.01,), (0.0,)
    scene = opened(tagged, model(scale=1e-4))
    assert np.array_equal(scene.read(WINDOW), DATA)
    assert any("--values scene" in text for text in scene.warnings)


def test_fingerprints_hold_the_constants(safe: Path) -> None:
    one, other = opened(safe, model(scale=1e-4)), opened(safe, model(scale=1e-4), values="model")
    assert one.fingerprint() != other.fingerprint()
    assert one.select(["B04"]).fingerprint() == one.fingerprint()


@pytest.mark.parametrize(
    ("data", "wanted", "expected"),
    [
        (DATA, model(scale=1e-4), None),
        (DATA, model(), None),
        (DATA, model(mean=500.0), "Other units"),
        (DATA, model(scale=1e-1), "Other units"),
        ((DATA // 4).astype(np.uint8), model(scale=1e-5), "almost black"),
    ],
)
def test_c26_values_out_of_the_models_range_are_told(
    tmp_path: Path, data: np.ndarray[tuple[int, ...], np.dtype[Any]], wanted: Model, expected: str | None
) -> None:
    scene = opened(write_scene(tmp_path / "s.tif", data, names=("red",)), wanted)
    found = range_warning(scene, wanted)
    assert (found is None) if expected is None else (found is not None and expected in found)


@pytest.mark.parametrize(
    ("wanted", "class_px", "expected"),
    [
        (model(), (0, 900), "every pixel became b"),
        (model(), (1, 899), None),
        (model(), (0, 0), None),  # nodata alone
        (model(mean=500.0), (0, 900), None),
        (model(scale=1e-4), (0, 900), None),
        (model(values="physical"), (0, 900), None),
    ],
)
def test_one_class_of_a_network_that_says_nothing_of_its_values_is_told(
    wanted: Model, class_px: tuple[int, ...], expected: str | None
) -> None:
    found = one_class_warning(wanted, class_px)
    assert (found is None) if expected is None else (found is not None and expected in found)
