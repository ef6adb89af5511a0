"""`--verify`: passes where tiling is exact, ends the run where it is not, and leaves tiles as they are."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from shapely import box

import pipeline as sm
from pipeline.cli.app import app
from pipeline.errors import ModelError, OutputError
from pipeline.grid import Window, near_seam
from pipeline.infer import TileResult
from pipeline.model import ModelSpec, Scaling, model_from_module
from pipeline.model.openvino import OpenVinoEngine
from pipeline.run import basis as basis_module
from pipeline.run import choose as choose_module
from pipeline.run import results as results_module
from pipeline.run import room as room_module
from pipeline.run import verify as verify_module
from pipeline.run.compare import Difference, compare
from pipeline.run.verify import WindowCheck
from pipeline.run.verify_windows import sample_windows
from pipeline.store import TileStore
from tests.networks import random_scene, unet_model
from tests.scenes import save_unet, write_scene

SHAPE = (233, 301)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    return save_unet(tmp_path_factory.mktemp("unet"), depth=2)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = random_scene(2, SHAPE) + 1
    data[:, 60:150, 70:190] = 0
    data[:, ::7, ::5] = 0
    return write_scene(tmp_path_factory.mktemp("scene") / "s.tif", data, nodata=0, names=("b0", "b1"))


@pytest.fixture(params=["whole", "windows"])
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Memory for one forward over the whole scene, or only for forwards over windows."""
    # Set for both: what other tests have left in this process counts too.
    left = 20_000_000 if request.param == "windows" else 10**9
    monkeypatch.setattr(results_module, "budget_left", lambda *_, **__: left)
    return str(request.param)


def _run(scene: Path, model: sm.Model, out: Path, **options: Any) -> dict[str, Any]:
    given = {"patch": 96, "tile": 1, "vectors": "none", "verify": 8, **options}
    return sm.segment(scene, model, out, **given).summary


def test_a_process_that_holds_more_than_its_budget_still_verifies(
    scene: Path, unet: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook, or one that has loaded CUDA's libraries: windows are then as small as can be."""
    monkeypatch.setattr(room_module, "resident_bytes", lambda: 10**12)
    assert _run(scene, unet, tmp_path, verify=2)["verify"]["windows"] == 2


@pytest.mark.parametrize("padding", ["reflect", "edge", "zero", "network"])
def test_an_exact_run_passes_and_says_so(
    scene: Path, unet: sm.Model, tmp_path: Path, budget: str, padding: str
) -> None:
    _run(scene, unet, tmp_path, padding=padding)
    found = json.loads((tmp_path / "run.json").read_text())["verify"]
    assert ("whole scene" in found["against"]) == (budget == "whole")
    assert found["windows"] == 8
    assert found["mean_abs"] <= found["max_abs"] <= 1e-5  # 0 where kernels sum in one order
    assert found["stored_differs_px"] == 0
    assert found["seam"]["pixels"] > 0
    assert found["other"]["pixels"] > 0
    assert found["seam"]["pixels"] + found["other"]["pixels"] == found["pixels"]


@pytest.mark.parametrize("config", [{"padding": "valid"}, {"upsampling": "bilinear"}, {"depth": 3}])
def test_other_networks_pass(scene: Path, tmp_path: Path, budget: str, config: dict[str, Any]) -> None:
    model = unet_model(**{"depth": 2, **config})
    assert _run(scene, model, tmp_path, patch=160)["verify"]["max_abs"] <= 1e-5


def test_one_output_with_a_threshold_passes(scene: Path, tmp_path: Path, budget: str) -> None:
    made = unet_model(depth=2, classes=1)
    spec = made.spec.model_copy(update={"classes": ("no", "yes"), "activation": "sigmoid", "threshold": 0.4})
    found = _run(scene, model_from_module(made.network, spec), tmp_path)["verify"]
    assert found["max_abs"] <= 1e-5


@pytest.mark.parametrize(
    ("precision", "config"), [("float32", {}), ("float32", {"padding": "valid"}), ("bfloat16", {"classes": 40})]
)
def test_probabilities_come_from_parts_where_memory_suffices_for_classes_alone(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, config: dict[str, Any]
) -> None:
    pytest.importorskip("openvino")
    model = unet_model(**{"depth": 2, **config})
    computed: dict[str, set[int]] = {"run": set(), "label": set()}
    for name, pixels in computed.items():
        method = getattr(OpenVinoEngine, name)

        def noted(engine: Any, x: Any, *, method: Any = method, pixels: set[int] = pixels) -> Any:
            pixels.add(x.shape[-2] * x.shape[-1])
            return method(engine, x)

        monkeypatch.setattr(OpenVinoEngine, name, noted)

    def little_left(*_: Any) -> int:
        for pixels in computed.values():
            pixels.clear()  # of calibration, and of the tiles
        return 10**6

    monkeypatch.setattr(results_module, "budget_left", little_left)
    options = {"backend": "openvino", "precision": precision, "patch": 160}
    found = _run(scene, model, tmp_path, **options)["verify"]
    plan = json.loads((tmp_path / "run.json").read_text())["plan"]
    assert computed["label"] == {math.prod(plan["patch_px"])}
    assert max(computed["run"]) < math.prod(plan["patch_px"])
    assert found["stored_differs_px"] == 0
    if precision == "float32":
        assert found["max_abs"] <= 1e-5


def test_classes_are_then_recomputed_as_the_tiles_were(
    scene: Path, unet: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored classes are compared with those that the same engine decides on the same patch, not with the parts'."""
    pytest.importorskip("openvino")
    run = OpenVinoEngine.run

    def little_left(*_: Any) -> int:
        monkeypatch.setattr(OpenVinoEngine, "run", lambda engine, x: torch.zeros_like(run(engine, x)))
        return 10**6

    monkeypatch.setattr(results_module, "budget_left", little_left)
    with pytest.raises(ModelError, match="MD-013") as caught:
        _run(scene, unet, tmp_path, backend="openvino", precision="float32", patch=160)
    assert "classes from" in caught.value.what  # the recomputation with a wider halo, whose outputs are all zero
    assert "the tiles hold" not in caught.value.what


def test_a_halo_one_stride_short_ends_the_run(
    scene: Path, unet: sm.Model, tmp_path: Path, budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = basis_module._halo

    def short(*args: Any) -> tuple[int, str]:
        halo, reason = right(*args)
        return halo - unet.traits.stride, reason

    monkeypatch.setattr(basis_module, "_halo", short)
    with pytest.raises(ModelError, match="MD-013") as caught:
        _run(scene, unet, tmp_path)
    assert caught.value.exit_code == 4
    assert "window rows" in caught.value.where
    assert "--tiling blend" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == [".scenemask"]
    assert (tmp_path / ".scenemask" / "store").exists()
    with pytest.raises(ModelError, match="MD-013"):  # the tiles were kept, and so was the wish to verify them
        sm.segment(scene, unet, tmp_path)


@pytest.mark.parametrize("tiling", ["exact", "blend"])
def test_a_tile_with_another_class_ends_the_run(
    scene: Path, unet: sm.Model, tmp_path: Path, tiling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TileStore.write

    def altered(store: TileStore, window: Any, mask: Any, probabilities: Any = None) -> Any:
        return write(store, window, np.where(mask == 0, np.uint8(1), mask), probabilities)

    monkeypatch.setattr(TileStore, "write", altered)
    with pytest.raises(ModelError, match="the tiles hold another class"):
        _run(scene, unet, tmp_path, tiling=tiling)
    assert not (tmp_path / "mask.tif").exists()


@pytest.mark.parametrize("verify", [1, 9])
def test_blending_is_compared_with_blending(
    scene: Path, unet: sm.Model, tmp_path: Path, budget: str, verify: int
) -> None:
    found = _run(scene, unet, tmp_path, tiling="blend", verify=verify)["verify"]
    assert found["windows"] == verify
    assert found["max_abs"] == 0
    assert found["flips"] == 0
    assert found["larger_context"]["max_abs"] > 1e-5
    assert found["larger_context"]["pixels"] == found["pixels"]


def test_flips_of_a_lower_precision_are_reported_and_bounded(
    scene: Path, unet: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _run(scene, unet, tmp_path / "a", precision="bfloat16")["verify"]
    assert found["flips_frac"] <= 0.01
    monkeypatch.setattr(verify_module, "MOST_FLIPS", -1.0)
    with pytest.raises(ModelError, match=r"allowed is .* in bfloat16"):
        _run(scene, unet, tmp_path / "b", precision="bfloat16")


def test_d13_a_precision_that_changes_many_classes_is_warned_of(
    scene: Path, unet: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for share, warned in ((0.004, False), (0.012, True)):
        monkeypatch.setattr(choose_module, "measure_flips", lambda *_, share=share: share)
        told = _run(scene, unet, tmp_path / str(share), precision="bfloat16", verify=0)
        assert told["plan"]["flips_frac"] == share
        found = [text for text in told["warnings"] if "bfloat16 changes the class of 1.20%" in text]
        assert bool(found) == warned


def test_d13_a_precision_that_was_not_taken_is_not_warned_of(
    scene: Path, unet: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` stays with float32, says why, and has nothing to warn of."""
    monkeypatch.setattr(choose_module, "measure_flips", lambda *_: 0.012)
    monkeypatch.setattr(choose_module, "has_fast_bfloat16", lambda _device: True)
    monkeypatch.setattr(choose_module, "WORTH_MEASURING_PX", 0)
    told = _run(scene, unet, tmp_path, precision="auto", verify=0)
    assert told["plan"]["precision"] == "float32"
    assert told["plan"]["flips_frac"] == 0.012
    assert [text for text in told["warnings"] if "changes the class" in text] == []


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (130, 5)])
@pytest.mark.parametrize("tiling", ["exact", "blend"])
def test_tiny_scenes(unet: sm.Model, tmp_path: Path, shape: tuple[int, int], budget: str, tiling: str) -> None:
    path = write_scene(tmp_path / "t.tif", random_scene(2, shape), names=("b0", "b1"))
    found = _run(path, unet, tmp_path / "out", tiling=tiling)["verify"]
    assert found["windows"] >= 1
    assert found["pixels"] >= 1


def test_a_scene_without_data_has_nothing_to_verify(unet: sm.Model, tmp_path: Path) -> None:
    data = np.zeros((2, 70, 90), np.uint16)
    path = write_scene(tmp_path / "empty.tif", data, nodata=0, names=("b0", "b1"))
    found = _run(path, unet, tmp_path / "out")["verify"]
    assert (found["windows"], found["pixels"]) == (0, 0)


def test_pixels_outside_the_area_of_interest_are_left_out(
    scene: Path, unet: sm.Model, tmp_path: Path, budget: str
) -> None:
    area = box(500_000 + 200, 5_000_000 - 900, 500_000 + 600, 5_000_000 - 300)
    geopandas.GeoDataFrame(geometry=[area], crs="EPSG:32633").to_file(tmp_path / "aoi.gpkg")
    found = _run(scene, unet, tmp_path / "out", aoi=tmp_path / "aoi.gpkg", tile=400, verify=1)["verify"]
    assert 0 < found["pixels"] <= 40 * 60


def test_verification_may_be_asked_for_late_but_not_after_the_end(
    scene: Path, unet: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(results_module.Finisher, "run", killed)
        with pytest.raises(RuntimeError, match="killed"):
            _run(scene, unet, tmp_path, verify=0)
    assert _run(scene, unet, tmp_path, verify=4)["verify"]["windows"] == 4
    assert _run(scene, unet, tmp_path, verify=2)["verify"]["windows"] == 4  # verified before: nothing to do
    plain = tmp_path / "plain"
    assert _run(scene, unet, plain, verify=0)["verify"] is None
    with pytest.raises(OutputError, match="OU-014"):
        _run(scene, unet, plain)


def test_the_command_line_prints_it(scene: Path, unet: sm.Model, tmp_path: Path) -> None:
    assert unet.path is not None
    args = ["segment", str(scene), "-m", str(unet.path), "-o", str(tmp_path), "--verify", "3", "--vectors", "none"]
    shown = CliRunner().invoke(app, args, catch_exceptions=False).output
    assert "verified 3 windows" in " ".join(shown.split())


def test_windows_are_the_same_for_one_plan_and_half_lie_on_seams(unet: sm.Model, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "s.tif", random_scene(2, (700, 600)), names=("b0", "b1"))
    plan = sm.plan(path, unet, patch=304, tile=1)
    store = TileStore.create(
        tmp_path / "store", shape=(700, 600), dtype="uint8", fill=255, shard_hw=plan.tiling.tile_hw
    )
    valid = {}
    for tile in plan.tiling.tiles():
        mask = np.full(tile.core.shape, 255, np.uint8)
        if tile.index:
            mask[: tile.core.height // 2] = 1
        store.write(tile.core, mask)
        valid[tile.index] = int((mask == 1).sum())
    drawn = [sample_windows(plan, store, valid, count=20, side_px=64, legend=unet.spec.legend()) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 20
    centred = [near_seam(plan.tiling, w, reach_px=4)[w.height // 2 - 4 : w.height // 2 + 8, :].any() for w in drawn[0]]
    assert sum(centred) >= 10
    assert sum(near_seam(plan.tiling, w, reach_px=4).any() for w in drawn[0]) <= 12
    for window in drawn[0]:
        assert window.row_off % 4 == window.col_off % 4 == 0
        assert (store.read_mask(window) != 255).any()
    other = dataclasses.replace(plan, taper="linear")
    assert sample_windows(other, store, valid, count=20, side_px=64, legend=unet.spec.legend()) != drawn[0]


def test_near_seam_by_a_plain_loop(unet: sm.Model, scene: Path) -> None:
    for options in ({"patch": 96}, {"tiling": "blend", "patch": 96, "overlap": 30}):
        tiling = sm.plan(scene, unet, **options).tiling
        window = verify_module.Window.from_bounds(3, 20, 233, 301)
        borders = [
            {edge for i in range(axis.count) for edge in axis.core(i) if 0 < edge < axis.size}
            for axis in (tiling.rows, tiling.cols)
        ]
        expected = [
            [any(b - 4 <= y < b + 4 for b in borders[0]) or any(b - 4 <= x < b + 4 for b in borders[1])
             for x in range(20, 301)] for y in range(3, 233)
        ]  # fmt: skip
        assert (near_seam(tiling, window, reach_px=4) == np.array(expected)).all()


def test_ties_are_reported_and_not_judged() -> None:
    spec = ModelSpec(name="t", bands=("b",), classes=("a", "b"), scaling=Scaling.identity(1))
    p = np.array([[[0.5, 0.3, 0.3, 0.5]], [[0.5, 0.7, 0.7, 0.5]]], np.float32)
    q = p.copy()
    q[:, 0, 1] = [0.31, 0.69]
    q[:, 0, 3] = np.nan
    one = TileResult(mask=np.array([[1, 1, 0, 0]], np.uint8), probabilities=p, patches=1)
    other = TileResult(mask=np.array([[0, 1, 1, 255]], np.uint8), probabilities=q, patches=1)
    found = compare(one, other, spec, where=np.ones((1, 4), bool))
    assert (found.pixels, found.flips, found.judged) == (4, 3, 3)
    assert found.max_abs == np.inf
    near = compare(one, other, spec, where=np.array([[False, True, False, False]]))
    assert near.max_abs == pytest.approx(0.01, abs=1e-6)


def test_near_ties_of_patches_that_were_cut_are_forgiven_and_more_is_not() -> None:
    pixels = Difference(pixels=10_000)
    check = WindowCheck(
        window=Window.from_bounds(0, 0, 100, 100), seam=pixels, other=Difference(), stored_px=100, context=None
    )
    assert verify_module._forgiven(check).stored_px == 0
    assert verify_module._forgiven(dataclasses.replace(check, stored_px=101)).stored_px == 101


@pytest.mark.parametrize(("wrong_px", "passes"), [(3, True), (2000, False)])
def test_only_tiles_that_were_cut_are_forgiven(
    scene: Path, unet: sm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_px: int, *, passes: bool
) -> None:
    """A few stored pixels that differ fail a run whose patches were whole, and pass where one was cut."""
    read = TileStore.read_mask

    def differing(store: TileStore, window: Window) -> Any:
        mask = read(store, window).copy()
        valid = np.flatnonzero(mask.ravel() != 255)[:wrong_px]
        mask.ravel()[valid] = (mask.ravel()[valid] + 1) % 3
        return mask

    monkeypatch.setattr(TileStore, "read_mask", differing)
    monkeypatch.setattr(TileStore, "find_damaged", lambda *_: [])
    for splits in (0, 1):
        run = verify_module.Verifier.run

        def with_splits(self: Any, records: Any, *, count: int, cuts: int = splits, run: Any = run) -> Any:
            return run(self, {i: dataclasses.replace(r, splits=cuts) for i, r in records.items()}, count=count)

        with monkeypatch.context() as patched:
            patched.setattr(verify_module.Verifier, "run", with_splits)
            patched.setattr(results_module, "Finisher", None)
            end: Any = TypeError if passes and splits else ModelError
            with pytest.raises(end, match="NoneType" if end is TypeError else "MD-013"):
                _run(scene, unet, tmp_path / str(splits))
