"""Folders and archives of Sentinel-2, of Landsat, and of files that only their names describe."""

from __future__ import annotations

import pickle
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from affine import Affine

from pipeline.access import Access
from pipeline.errors import InputError
from pipeline.grid import Window
from pipeline.scene import open_scene
from pipeline.scene.find import find_sources
from pipeline.scene.product import Product
from pipeline.scene.quality import open_quality_layer
from tests.scenes import NORTH_UP, UTM, smooth_values, write_scene
from tests.unit.scene.products import pack, write_landsat, write_safe

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FINE, MIDDLE = (60, 80), (30, 40)
WHOLE = Window(row_off=0, col_off=0, height=60, width=80)


@pytest.fixture(scope="module")
def pixels() -> dict[str, tuple[int, NDArray[Any], Affine]]:
    twice = NORTH_UP @ Affine.scale(2)
    fine = {name: (10, smooth_values(1, FINE, seed=k)[0], NORTH_UP) for k, name in enumerate(("B02", "B04", "B08"))}
    middle = {name: (20, smooth_values(1, MIDDLE, seed=k)[0], twice) for k, name in enumerate(("B11", "B8A"))}
    fine["B02"][1][:5, :7] = 0
    return {**fine, **middle, "SCL": (20, np.full(MIDDLE, 4, np.uint8), twice)}


@pytest.fixture(scope="module", params=["folder", "zip", "tar"])
def safe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pixels: dict[str, Any]) -> Path:
    base = tmp_path_factory.mktemp("safe")
    folder = write_safe(base, pixels, crs=UTM)
    return folder if request.param == "folder" else pack(folder, base / f"product.{request.param}")


def test_a_safe_product_has_its_bands_in_place(safe: Path, pixels: dict[str, Any]) -> None:
    scene = pickle.loads(pickle.dumps(open_scene(safe, bands=["nir", "B11", "blue"], resampling="nearest")))
    assert scene.name.startswith("S2A_MSIL2A_20220301T112111")
    assert scene.geobox.shape == FINE
    block = scene.read_block(WHOLE)
    assert np.array_equal(block.data[0], pixels["B08"][1])
    assert np.array_equal(block.data[1], pixels["B11"][1].repeat(2, 0).repeat(2, 1))
    assert np.array_equal(block.valid[2], pixels["B02"][1] != 0)
    assert open_scene(safe, bands=["swir16", "nir08"]).geobox.shape == MIDDLE


def test_c27_a_safe_product_says_its_offset_once(safe: Path) -> None:
    for band in open_scene(safe).bands:
        assert (band.scale, round(band.offset, 12)) == (1e-4, -0.1)
        assert band.truth == "MTD_MSI: QUANTIFICATION_VALUE, ADD_OFFSET"
    product = find_sources(safe, Access())
    assert isinstance(product, Product)
    assert [layer.band.name for layer in product.layers] == ["SCL"]
    assert product.kind == "Sentinel-2 Level-2A"


def test_a_level_1c_product_of_before_2022_has_no_offset(tmp_path: Path, pixels: dict[str, Any]) -> None:
    wanted = {name: pixels[name] for name in ("B02", "B11")}
    scene = open_scene(write_safe(tmp_path, wanted, crs=UTM, offset=0, level="1C"))
    assert {(band.name, band.scale, band.offset) for band in scene.bands} == {("B02", 1e-4, 0.0), ("B11", 1e-4, 0.0)}


@pytest.mark.parametrize("packed", [None, "tar", "zip"])
def test_a_landsat_product_has_its_bands_and_scales(tmp_path: Path, packed: str | None) -> None:
    bands = {number: smooth_values(1, FINE, seed=int(number))[0] for number in ("2", "4", "5")}
    folder = write_landsat(tmp_path, bands, crs=UTM, transform=NORTH_UP)
    source = folder if packed is None else pack(folder, tmp_path / f"bundle.{packed}")
    scene = open_scene(source, bands=["nir08", "red", "B2"])
    assert np.array_equal(scene.read(WHOLE), np.stack([bands["5"], bands["4"], bands["2"]]))
    for band in scene.bands:
        assert (band.scale, band.offset) == (2.75e-05, -0.2)
        assert band.truth == "MTL: LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"


@pytest.mark.parametrize(("sun", "sine"), [("30.0", 0.5), ("-3.0", 1.0), ("", 1.0)])
def test_c27_landsats_level_1_is_divided_by_the_sine_of_the_suns_elevation_once(
    tmp_path: Path, sun: str, sine: float
) -> None:
    bands = {"4": smooth_values(1, FINE)[0]}
    (band,) = open_scene(write_landsat(tmp_path, bands, crs=UTM, transform=NORTH_UP, level=1, sun=sun)).bands
    assert (band.scale, band.offset) == pytest.approx((2e-5 / sine, -0.1 / sine))
    said = "over the sine of SUN_ELEVATION 30" if sine < 1 else "sun angle left as it is"
    assert said in band.truth


def test_a_compressed_tar_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "LC08.tar.gz", "w:gz") as tar:
        tar.add(write_landsat(tmp_path / "x", {"4": smooth_values(1, FINE)[0]}, crs=UTM, transform=NORTH_UP), "LC08")
    with pytest.raises(InputError, match="IN-058") as caught:
        open_scene(tmp_path / "LC08.tar.gz")
    assert "tar -xf" in caught.value.fix
    for name in ("s3://bucket/LC08.tar", "https://h.org/S2.SAFE.zip?sig=1", "gs://bucket/x.tgz"):
        with pytest.raises(InputError, match=r"IN-058.*disks only"):
            open_scene(name)


def test_a_folder_of_one_file_per_band(tmp_path: Path, pixels: dict[str, Any]) -> None:
    for name in ("B02", "B04", "B8A"):
        _, data, transform = pixels[name]
        write_scene(tmp_path / f"T29_2022_{name}.tif", data[None], transform=transform)
    scene = open_scene(tmp_path, bands=["red", "nir08"])
    assert [band.name for band in scene.bands] == ["B04", "B8A"]
    assert scene.geobox.shape == FINE


def test_fingerprints_tell_of_every_file(tmp_path: Path, pixels: dict[str, Any]) -> None:
    folder = write_safe(tmp_path, {name: pixels[name] for name in ("B02", "B11")}, crs=UTM)
    scene = open_scene(folder)
    before = scene.fingerprint()
    assert scene.fingerprint() == before
    image = next(folder.rglob("*_B11_*.jp2"))
    image.write_bytes(image.read_bytes() + b"\0")
    assert scene.fingerprint() != before
    assert open_scene(folder, bands=["B02"]).fingerprint() != before


def test_folders_that_hold_no_scene_or_several(tmp_path: Path, pixels: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="IN-054"):
        open_scene(tmp_path)
    write_safe(tmp_path / "a", {"B02": pixels["B02"]}, crs=UTM)
    write_safe(tmp_path / "b", {"B02": pixels["B02"]}, crs=UTM)
    with pytest.raises(InputError, match="IN-058"):
        open_scene(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="IN-058"):
        open_scene(tmp_path / "broken.zip")
    metadata = next((tmp_path / "a").rglob("MTD_MSIL2A.xml"))
    metadata.write_text("<a>")
    with pytest.raises(InputError, match="IN-058"):
        open_scene(metadata.parent)


def test_the_layers_of_a_product_are_found_by_name(safe: Path, pixels: dict[str, Any]) -> None:
    """As they are stored, whatever is done to the measurements."""
    scene = open_scene(safe, bands=["blue"])
    for name in ("SCL", "scl"):
        layer = open_quality_layer(scene, name, [4], access=None)
        assert not layer.mask(WHOLE).any()
        assert layer.placed.parts[0].scene.geobox.shape == MIDDLE
    own = open_quality_layer(scene, "B02", [int(pixels["B02"][1][30, 30])], access=None)
    assert np.array_equal(own.mask(WHOLE), pixels["B02"][1] != pixels["B02"][1][30, 30])
