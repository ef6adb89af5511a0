"""Networks whose classes overlap: a threshold and a band for each, and the same promises as for any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from rasterio.features import rasterize, shapes
from rio_cogeo import cog_validate

import pipeline as sm
from pipeline.grid import blend_tiling, exact_tiling
from pipeline.model import ModelSpec, UNet, save_model
from pipeline.store import read_legend
from tests.commands import Cli, assert_block
from tests.networks import multilabel_model, predict_by_tiles, random_scene, reader, whole_forward
from tests.scenes import NORTH_UP, save_unet, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (233, 301)
CUTS = (0.3, 0.5, 0.7)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    made = multilabel_model(CUTS)
    assert isinstance(made.network, UNet)
    return save_model(tmp_path_factory.mktemp("model"), made.network, made.spec)


@pytest.fixture(scope="module")
def values() -> Any:
    data = smooth_values(2, SHAPE)
    data[:, 60:150, 70:190] = 0
    return data


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, values: Any) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "s.tif", values, nodata=0, names=("b0", "b1"))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, scene: Path, model: sm.Model) -> sm.RunResult:
    out = tmp_path_factory.mktemp("out")
    return sm.segment(
        scene, model, out, patch=96, tile=1, vectors="geojson,parquet", probabilities=True, verify=6,
        precision="float32",
    )  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def _mask(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as file:
        return np.asarray(file.read())


@settings(max_examples=20)
@given(
    height=st.integers(20, 120), width=st.integers(20, 120), core=st.integers(16, 64), tile=st.integers(1, 150),
    cuts=st.tuples(*[st.floats(0.05, 0.95)] * 3),
)  # fmt: skip
def test_the_exact_law(height: int, width: int, core: int, tile: int, cuts: tuple[float, ...]) -> None:
    model = multilabel_model(cuts)
    traits = model.traits
    halo = traits.halo_px
    assert halo is not None
    data = random_scene(2, (height, width), seed=height)
    tiling = exact_tiling(
        (height, width), core_hw=(core, core), halo_px=halo, stride=traits.stride, margin_px=0, sizes=traits.sizes,
        tile_px=tile,
    )  # fmt: skip
    got = predict_by_tiles(model, tiling, reader(data))
    sides = [traits.sizes.at_least(2 * halo + n) for n in (height, width)]
    expected = whole_forward(model, data, before=halo, after_hw=(sides[0] - halo - height, sides[1] - halo - width))
    assert got.probabilities is not None
    assert np.abs(got.probabilities - expected).max() <= 1e-5
    for band, p, cut in zip(got.mask, expected, cuts, strict=True):
        assert ((band == (p >= cut)) | (np.abs(p - cut) < 1e-5)).all()


@pytest.mark.parametrize("tta", ["none", "flips"])
@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_the_mask_does_not_depend_on_tiles(mode: str, tta: Any) -> None:
    model = multilabel_model((0.4, 0.5, 0.6))
    traits, shape = model.traits, (150, 131)
    data = random_scene(2, shape)
    masks = []
    for tile in (1, 64, 200):
        if mode == "exact":
            tiling = exact_tiling(
                shape, core_hw=(48, 48), halo_px=traits.halo_px or 0, stride=traits.stride, margin_px=0,
                sizes=traits.sizes.on_stride(traits.stride), tile_px=tile,
            )  # fmt: skip
        else:
            tiling = blend_tiling(
                shape, patch_px=64, overlap_px=16, stride=traits.stride, margin_px=0,
                sizes=traits.sizes.on_stride(traits.stride), tile_px=tile,
            )  # fmt: skip
        masks.append(predict_by_tiles(model, tiling, reader(data), tta=tta).mask)
    assert masks[0].shape == (3, *shape)
    assert (masks[0] == masks[1]).all()
    assert (masks[0] == masks[2]).all()
    assert all(0 < band.mean() < 1 for band in masks[0])


def test_a_band_per_class(result: sm.RunResult, values: Any) -> None:
    valid, errors, _ = cog_validate(str(result.mask_path))
    assert (valid, errors) == (True, [])
    with rasterio.open(result.mask_path) as mask, rasterio.open(result.out_dir / "probabilities.tif") as file:
        assert mask.count == 3
        assert mask.descriptions == ("c0", "c1", "c2")
        assert mask.nodata == 255
        assert set(mask.dtypes) == {"uint8"}
        assert mask.interleaving is not None
        found, p = mask.read(), file.read()
        small = mask.read(out_shape=(3, 117, 151))
        assert mask.overviews(3) == [] or set(np.unique(small)) <= {0, 1, 255}
    absent = values[0] == 0
    assert (found[:, absent] == 255).all()
    assert set(np.unique(found[:, ~absent])) == {0, 1}
    for band, probability, cut in zip(found, p, CUTS, strict=True):
        sure = ~absent & (np.abs(probability / 250 - cut) > 0.004)
        assert (band[sure] == (probability / 250 >= cut)[sure]).all()
    both = (found == 1).sum(axis=0)
    assert ((both > 1) & ~absent).any()
    assert (both[~absent] == 0).any()


def test_what_the_record_says(result: sm.RunResult) -> None:
    found = _mask(result.mask_path)
    record = json.loads((result.out_dir / "run.json").read_text())
    assert [row["pixels"] for row in record["classes"]] == [int((band == 1).sum()) for band in found]
    assert record["valid_px"] == int((found[0] != 255).sum())
    assert [row["area_m2"] / row["pixels"] for row in record["classes"]] == pytest.approx([100] * 3, rel=0.01)
    assert record["verify"]["windows"] == 6
    assert record["verify"]["flips"] == record["verify"]["stored_differs_px"] == 0
    asset = json.loads((result.out_dir / "item.json").read_text())["assets"]["mask"]
    assert [band["name"] for band in asset["bands"]] == ["c0", "c1", "c2"]
    assert [entry["value"] for entry in asset["bands"][1]["classification:classes"]] == [0, 1, 255]
    picture = np.asarray(Image.open(result.out_dir / "preview.png"))
    assert picture.shape[1] > 2 * SHAPE[1]


def test_polygons_of_each_band_overlap(result: sm.RunResult) -> None:
    found = _mask(result.mask_path)
    frame = geopandas.read_parquet(result.out_dir / "polygons.parquet")
    for value, band in enumerate(found):
        ours = frame[frame["class_id"] == value]
        assert set(ours["class_name"]) == {f"c{value}"}
        burned = rasterize(ours.geometry, SHAPE, fill=0, default_value=1, transform=NORTH_UP, dtype="uint8")
        assert (burned == (band == 1)).all()
        assert len(ours) == sum(1 for _ in shapes(band, mask=band == 1, connectivity=4))
        assert int(ours["area_px"].sum()) == int((band == 1).sum())
    assert frame["id"].is_unique
    assert len(geopandas.read_file(result.out_dir / "polygons.geojson")) == len(frame)


def test_the_mask_is_vectorized_by_itself(result: sm.RunResult, tmp_path: Path, run: Cli) -> None:
    legend = read_legend(result.mask_path)
    assert legend is not None
    assert legend.multilabel
    frame = geopandas.read_parquet(result.out_dir / "polygons.parquet")
    assert sorted(sm.vectorize(result.mask_path)["id"]) == sorted(frame["id"])
    code, _, _ = run("vectorize", result.mask_path, "-o", tmp_path / "one.gpkg", "--only", "c1", "-q")
    assert code == 0
    one = geopandas.read_file(tmp_path / "one.gpkg", layer="one")
    assert sorted(one["id"]) == sorted(frame[frame["class_name"] == "c1"]["id"])


def test_class_names_stand_beside_each_band(result: sm.RunResult) -> None:
    text = (result.out_dir / "mask.tif.aux.xml").read_text()
    assert text.count("<PAMRasterBand") == 3
    assert "<Category>not c2</Category>" in text
    assert 'alpha="0"' in (result.out_dir / "mask.qml").read_text()


def test_workers_and_probabilities_change_no_byte(
    scene: Path, model: sm.Model, result: sm.RunResult, tmp_path: Path
) -> None:
    again = sm.segment(
        scene, model, tmp_path / "out", patch=96, tile=130, vectors="none", workers=2, precision="float32"
    )
    assert sha256(again.mask_path) == sha256(result.mask_path)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_c20_a_scene_without_data(model: sm.Model, tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    path = write_scene(tmp_path / "s.tif", np.zeros((2, 60, 70), np.uint16), nodata=0, names=("b0", "b1"))
    made = sm.segment(path, model, tmp_path / "out", backend=backend, probabilities=True)
    assert made.summary["status"] == "empty"
    assert (_mask(made.mask_path) == 255).all()


def test_bare_weights_with_thresholds(scene: Path, tmp_path: Path, run: Cli) -> None:
    save_unet(tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    common = ("-m", weights, "--mean", "500", "--std", "250", "--bands", "1,2", "--vectors", "none", "-q")
    code, _, err = run("segment", scene, *common, "--multilabel", "--threshold", "0.3,0.5,0.7", "-o", tmp_path / "out")
    assert code == 0, err
    assert _mask(tmp_path / "out" / "mask.tif").shape == (3, *SHAPE)
    code, _, err = run("segment", scene, *common, "--multilabel", "--threshold", "0.3,0.5", "-o", tmp_path / "two")
    assert code == 4
    assert_block(err, "MD-003")
    assert "2 thresholds, expected 3, one per class" in err
    code, _, err = run("segment", scene, *common, "--threshold", "1.5", "-o", tmp_path / "three")
    assert code == 2
    assert_block(err, "CF-005")
    code, out, _ = run("inspect", tmp_path / "model", "--json")
    assert json.loads(out)["decision"] == "the largest output"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "softmax"}, "softmax makes classes exclude each other"),
        ({"threshold": (0.5, 0.5)}, "2 thresholds, expected 3, one per class"),
        ({"threshold": 0.0}, "between 0 and 1"),
        ({"multilabel": False, "threshold": (0.5, 0.5, 0.5)}, "3 thresholds, expected one"),
        ({"outputs": 1}, "1 outputs for 3 classes"),
    ],
)
def test_descriptions_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSpec.model_validate({**multilabel_model(0.5).spec.model_dump(), **changes})


def test_d6_a_network_that_yields_no_number_is_named(scene: Path, tmp_path: Path) -> None:
    made = multilabel_model(0.5)
    assert isinstance(made.network, UNet)
    with torch.no_grad():
        made.network.head.bias[1] = torch.nan
    broken = save_model(tmp_path / "model", made.network, made.spec)
    for backend in ("torch", "openvino"):
        with pytest.raises(sm.PipelineError, match="MD-006"):
            sm.segment(scene, broken, tmp_path / backend, backend=backend, vectors="none", precision="float32")
