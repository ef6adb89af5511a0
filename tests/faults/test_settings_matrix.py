"""F7, D16, C38: what may differ between a run and its resumption, for every setting there is."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pipeline as sm
from pipeline.errors import OutputError
from pipeline.run import segment as module
from pipeline.run.identity import adopt_settings, identity, refuse_differences
from pipeline.run.settings import COSMETIC, SegmentSettings, make_settings
from pipeline.scene import Limits
from tests.scenes import save_threshold_model, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (70, 90)
BASE: dict[str, Any] = {"patch": 64, "tile": 1, "vectors": "none"}
OTHER: dict[str, Any] = {
    "bands": "2,1", "mask_values": "3,8", "nodata": 7.0,
    "resampling": "nearest", "resolution": 20.0, "mask_grid": "scene", "force_resolution": True, "crs": "EPSG:3857",
    "align": "/data/grid.tif", "warp_gcps": True, "rpc_height": 12.0, "rpc_dem": "/data/dem.tif", "values": "model",
    "assume_crs": "EPSG:32633", "allow_no_crs": True,
    "tiling": "exact", "halo_tolerance": 0.01, "overlap": 32, "patch": 96, "tile": 99, "taper": "linear",
    "tta": "flips", "padding": "zero", "device": "cpu", "precision": "float32", "max_flip": 0.5, "backend": "torch",
    "deterministic": True, "trust_model": True, "probabilities": True, "vectors": "gpkg", "connectivity": 8,
    "fill_holes": "3 px", "min_area": "5 px", "sieve": True, "smooth": True, "simplify": "1 px",
    "regularize": "high", "min_iou": 0.5,
    "verify": 1, "cluster": "tcp://127.0.0.1:1", "workers": 2, "memory": "2GB", "keep": True, "scale": 2.0,
    "offset": 1.0, "mean": 1.0, "std": 2.0, "class_names": "a,b", "activation": "softmax", "multilabel": True,
    "threshold": 0.4, "stuck_after": 999.0, "insecure_cluster": True, "allow_version_skew": True,
    "endpoint": "http://127.0.0.1:9", "allow_loopback": True, "retries": 1, "connect_timeout": 1.0, "read_timeout": 1.0,
}  # fmt: skip
"""Setting -> a value that differs from the default; `aoi`, `mask_layer` and `scratch` are tested by themselves."""
NEEDS: dict[str, dict[str, Any]] = {
    "sieve": {"min_area": "5 px"},
    "overlap": {"tiling": "blend"},
    "rpc_height": {"warp_gcps": True},
    "rpc_dem": {"warp_gcps": True},
    "mask_values": {"mask_layer": "scl", "mask_values": "1"},
}
"""Setting -> others without which it is no valid one; the run has them too."""


def test_every_setting_has_another_value_here() -> None:
    """A new setting must be added to one of the two kinds, or this fails."""
    assert {*OTHER, "aoi", "mask_layer", "scratch"} == set(SegmentSettings.model_fields)
    for name, value in OTHER.items():
        assert getattr(make_settings({**NEEDS.get(name, {}), name: value}), name) != _default(name), name
    assert set(SegmentSettings.model_fields) > COSMETIC


def _default(name: str) -> Any:
    return SegmentSettings.model_fields[name].default


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sm.Model:
    return save_threshold_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> sm.Scene:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return sm.open_scene(write_scene(path, smooth_values(2, SHAPE), names=("b0", "b1")))


@pytest.mark.parametrize("name", sorted(OTHER))
def test_f7_semantic_settings_are_refused_and_cosmetic_ones_allowed(
    scene: sm.Scene, model: sm.Model, name: str
) -> None:
    """On the comparison itself, so that settings count too that do not fit this scene."""
    base = make_settings(NEEDS.get(name, {}))
    before = identity(scene, model, base, limits=Limits())
    given = make_settings(NEEDS.get(name, {}) | {name: OTHER[name]})
    now = adopt_settings(given, base.model_dump(mode="json"))
    after = identity(scene, model, now, limits=Limits())
    if name in COSMETIC:
        refuse_differences(before, after, explicit={name}, where=Path("out"))
        return
    with pytest.raises(OutputError, match=f"setting {name}: was") as caught:
        refuse_differences(before, after, explicit={name}, where=Path("out"))
    assert caught.value.code == "OU-011"
    assert caught.value.exit_code == 5
    refuse_differences(before, before, explicit={name}, where=Path("out"))  # given again as it was


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `segment` until two tiles are done, as if Ctrl-C had come then."""

    def begin(*arguments: Any, **options: Any) -> None:
        def some(connection: Any, job: Any, model: Any, tiles: Any, **more: Any) -> None:
            whole(connection, job, model, tiles[:2], **more)
            raise KeyboardInterrupt

        whole = module.run_tiles
        with monkeypatch.context() as patch:
            patch.setattr(module, "run_tiles", some)
            with pytest.raises(KeyboardInterrupt):
                sm.segment(*arguments, **options)

    return begin


_REFUSED = ("bands", "nodata", "tiling", "patch", "tile", "padding", "taper", "tta", "precision", "probabilities",
            "vectors", "connectivity", "simplify", "max_flip")  # fmt: skip


def test_f7_a_resumption_refuses_and_allows_as_the_comparison_says(
    scene: sm.Scene, model: sm.Model, tmp_path: Path, cut_off: Callable[..., None]
) -> None:
    """The settings that fit this scene, through the front door; then the run is continued as it began."""
    out = tmp_path / "out"
    cut_off(scene.path, model, out, **BASE)
    plan = (out / ".scenemask" / "plan.json").read_bytes()
    for name in _REFUSED:
        with pytest.raises(OutputError, match=f"setting {name}: was"):
            sm.segment(scene.path, model, out, **{name: OTHER[name]})
        assert (out / ".scenemask" / "plan.json").read_bytes() == plan
    cosmetic = {"workers": 1, "memory": "2GB", "verify": 1, "trust_model": True, "scratch": tmp_path / "scratch"}
    result = sm.segment(scene.path, model, out, **cosmetic)
    assert sha256(result.mask_path) == sha256(sm.segment(scene.path, model, tmp_path / "whole", **BASE).mask_path)
    assert result.summary["verify"] is not None


@pytest.mark.parametrize("change", ["content", "time", "weights"])
def test_c38_d16_a_changed_scene_or_model_is_refused_on_resume(
    model: sm.Model, tmp_path: Path, cut_off: Callable[..., None], change: str
) -> None:
    values = smooth_values(2, SHAPE)
    scene = write_scene(tmp_path / "scene.tif", values, names=("b0", "b1"))
    cut_off(scene, model, tmp_path / "out", **BASE)
    other = model
    if change == "weights":
        other = save_threshold_model(tmp_path / "other", at=501.0)
    elif change == "content":
        write_scene(scene, values[:, ::-1], names=("b0", "b1"))
    else:
        write_scene(scene, values, names=("b0", "b1"))
    with pytest.raises(OutputError, match="digest" if change == "weights" else "mtime_ns") as caught:
        sm.segment(scene, other, tmp_path / "out")
    assert caught.value.code == "OU-011"


def test_c38_a_scene_that_changes_during_the_run_ends_it_without_results(model: sm.Model, tmp_path: Path) -> None:
    values = smooth_values(2, SHAPE)
    scene = write_scene(tmp_path / "scene.tif", values, names=("b0", "b1"))

    def rewrite(event: Any) -> None:
        if getattr(event, "name", "") == "mask":
            write_scene(scene, values, names=("b0", "b1"))

    with pytest.raises(OutputError, match="changed while the scene was being segmented"):
        sm.segment(scene, model, tmp_path / "out", listener=rewrite, **BASE)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".scenemask"]


def test_the_kinds_of_settings_are_literals() -> None:
    """Every choice of a Literal setting differs from another one in the identity: none is dropped on the way."""
    for name, info in SegmentSettings.model_fields.items():
        if typing.get_origin(info.annotation) is typing.Literal and name not in COSMETIC:
            texts = {
                str(make_settings({name: c}).model_dump(mode="json")[name]) for c in typing.get_args(info.annotation)
            }
            assert len(texts) == len(typing.get_args(info.annotation))
