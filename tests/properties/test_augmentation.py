"""Test-time augmentation: the laws of tiling hold for the mean over flips and turns too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pipeline as sm
from pipeline.errors import ModelError, OutputError
from pipeline.grid import SizeRule, Window, balanced_core, blend_tiling, exact_tiling
from pipeline.infer import Predictor, augment, symmetries
from pipeline.model import Model, ModelSpec, Scaling, model_from_module, openvino, to_probabilities
from pipeline.run.plan import make_plan
from pipeline.run.settings import make_settings
from pipeline.run.tile_task import make_predictor
from tests.networks import predict_by_tiles, predictor, random_scene, reader, unet_model
from tests.scenes import sha256, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

needs_openvino = pytest.mark.skipif(not openvino.available(), reason="OpenVINO is not installed")


def _images(augmentation: str) -> list[tuple[Any, Any]]:
    """(there, back) in NumPy's own words, on the last two axes."""
    turns = [lambda a: a, lambda a: a[..., ::-1, :], lambda a: a[..., ::-1], lambda a: a[..., ::-1, ::-1]]
    pairs = [(turn, turn) for turn in turns]
    if augmentation == "d4":
        pairs += [(lambda a, k=k: np.rot90(a, k, (-2, -1)), lambda a, k=k: np.rot90(a, -k, (-2, -1))) for k in (1, 3)]

        def swap(a: NDArray[Any]) -> NDArray[Any]:
            return np.swapaxes(a, -1, -2)

        def anti(a: NDArray[Any]) -> NDArray[Any]:
            return swap(a)[..., ::-1, ::-1]

        pairs += [(swap, swap), (anti, anti)]
    return pairs


def _mean(model: Model, x: NDArray[np.float32], augmentation: str) -> NDArray[np.float32]:
    """Mean probabilities `(class, y', x')` of a network input `(band, y, x)`, by a plain loop."""
    images = _images(augmentation)
    total = np.float64(0)
    for there, back in images:
        with torch.inference_mode():
            output = model.network(torch.from_numpy(np.ascontiguousarray(there(x)))[None])[0]
        total = total + back(torch.softmax(output, 0).numpy().astype(np.float64))
    return (total / len(images)).astype(np.float32)


def _scaled(data: NDArray[Any]) -> NDArray[np.float32]:
    return ((data.astype(np.float32) - 500) / 250).astype(np.float32)


def _plan(model: Model, shape: tuple[int, int], **options: Any) -> Any:
    import xarray as xr

    array = xr.DataArray(np.broadcast_to(np.uint16(1), (2, *shape)), dims=("band", "y", "x"))
    given = {"allow_no_crs": True, "patch": 96, "tile": 1, "backend": "torch", **options}
    return make_plan(sm.open_scene(array, allow_no_crs=True), model, make_settings(given))


def _whole(model: Model, data: NDArray[Any], plan: Any) -> NDArray[np.float32]:
    """Flipped forwards over the whole scene, extended to a size that lies on the stride as a patch does."""
    network = plan.padding == "network"
    stride, margin = plan.tiling.stride, model.traits.margin_px
    before = 0 if network else 2 * plan.tiling.halo_px + (-2 * plan.tiling.halo_px) % stride
    after = []
    for n in data.shape[1:]:
        size = n + before if network else n + 2 * before
        while size % stride != plan.tiling.rows.patch % stride or model.traits.sizes.at_least(size) != size:
            size += 1
        after.append(size - before - n)
    padded = np.pad(_scaled(data), ((0, 0), (before, after[0]), (before, after[1])), mode="reflect")
    top = before - margin
    return _mean(model, padded, plan.tta)[:, top : top + data.shape[1], top : top + data.shape[2]]


def _assert_law(model: Model, shape: tuple[int, int], **options: Any) -> None:
    plan, data = _plan(model, shape, **options), random_scene(2, shape, seed=3)
    assert plan.tiling.mode == "exact"
    predict = make_predictor(model, plan)
    expected = _whole(model, data, plan)
    top = np.sort(expected, axis=0)
    for tile in plan.tiling.tiles():
        result = predict.predict(reader(data), tile.core, probabilities=True)
        inside = tile.core.slices_in(Window.from_bounds(0, 0, *shape))
        assert result.probabilities is not None
        assert np.abs(result.probabilities - expected[(slice(None), *inside)]).max() <= 1e-5
        tie = (top[-1] - top[-2])[inside] < 2e-5
        assert ((result.mask == expected[(slice(None), *inside)].argmax(axis=0)) | tie).all()


@pytest.mark.parametrize("tta", ["flips", "d4"])
@pytest.mark.parametrize("padding", ["reflect", "network"])
@pytest.mark.parametrize("shape", [(150, 150), (203, 170), (90, 33)])
def test_exact_equals_the_mean_of_flipped_whole_forwards(tta: str, padding: str, shape: tuple[int, int]) -> None:
    for upsampling in ("transposed", "bilinear"):
        _assert_law(unet_model(depth=2, upsampling=upsampling), shape, tta=tta, padding=padding)


@pytest.mark.parametrize("tta", ["flips", "d4"])
@pytest.mark.parametrize(("depth", "core"), [(1, 32), (2, 32), (2, 44), (3, 40)])
def test_networks_that_drop_their_borders_too(tta: str, depth: int, core: int) -> None:
    model = unet_model(depth=depth, padding="valid")
    patch = core + 2 * (model.traits.halo_px or 0)
    _assert_law(model, (130, 171), tta=tta, patch=patch)


class _Coarse(torch.nn.Module):
    """Takes any size, though its stride is 4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = torch.nn.Conv2d(2, 4, 4, stride=4)
        self.up = torch.nn.ConvTranspose2d(4, 3, 4, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        padded = torch.nn.functional.pad(x, (0, -width % 4, 0, -height % 4))
        out: torch.Tensor = self.up(self.down(padded))[..., :height, :width]
        return out


@pytest.mark.parametrize("padding", ["reflect", "network"])
@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_a_stride_that_sizes_need_not_keep(padding: str, tta: str) -> None:
    scaling = unet_model(depth=2).spec.scaling
    spec = ModelSpec(name="coarse", bands=("a", "b"), classes=("a", "b", "c"), scaling=scaling)
    model = model_from_module(_Coarse(), spec)
    assert (model.traits.tiling, model.traits.stride, model.traits.size_multiple) == ("exact", 4, 1)
    _assert_law(model, (61, 83), tta=tta, padding=padding, patch=40)


@needs_openvino
@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_a_graph_of_one_size_too(tta: str) -> None:
    _assert_law(unet_model(depth=2), (90, 150), tta=tta, backend="openvino")


@pytest.mark.parametrize("tta", ["flips", "d4"])
@pytest.mark.parametrize("make", ["exact", "blend"])
def test_an_identity_network_is_unchanged(tta: str, make: str) -> None:
    network = torch.nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(3)[:, :, None, None])
    spec = ModelSpec(name="identity", bands=("a", "b", "c"), classes=("a", "b", "c"), scaling=Scaling.identity(3))
    data = np.random.default_rng(0).normal(0, 3, (3, 70, 103)).astype(np.float32)
    common: dict[str, Any] = {"stride": 1, "margin_px": 0, "sizes": SizeRule(multiple=1), "tile_px": 1, "square": True}
    if make == "exact":
        tiling = exact_tiling((70, 103), core_hw=(32, 32), halo_px=0, **common)
    else:
        tiling = blend_tiling((70, 103), patch_px=32, overlap_px=8, **common)
    result = predict_by_tiles(model_from_module(network, spec), tiling, reader(data), tta=tta)
    expected = torch.softmax(torch.from_numpy(data), 0).numpy()
    assert result.probabilities is not None
    assert np.abs(result.probabilities - expected).max() < 1e-6
    assert (result.mask == data.argmax(axis=0)).all()


@pytest.mark.parametrize("tta", ["flips", "d4"])
@pytest.mark.parametrize("shape", [(60, 60), (37, 60)])
def test_blending_blends_the_means_of_patches(tta: str, shape: tuple[int, int]) -> None:
    """One patch covers the scene: blending has nothing to add to the mean."""
    model = unet_model(depth=2, norm="instance")
    plan, data = _plan(model, shape, tta=tta, patch=64, tiling="blend"), random_scene(2, shape)
    assert plan.tiling.num_patches == 1
    height, width = plan.tiling.patch_hw
    padded = np.pad(_scaled(data), ((0, 0), (0, height - shape[0]), (0, width - shape[1])), mode="reflect")
    expected = _mean(model, padded, tta)[:, : shape[0], : shape[1]]
    result = make_predictor(model, plan).predict(reader(data), Window.from_bounds(0, 0, *shape), probabilities=True)
    assert result.probabilities is not None
    assert np.abs(result.probabilities - expected).max() <= 1e-5


@pytest.mark.parametrize("tta", ["flips", "d4"])
@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_bytes_do_not_depend_on_the_tile(tta: str, mode: str) -> None:
    model, data = unet_model(depth=2), random_scene(2, (150, 203), seed=7)
    results = []
    for tile in (1, 100, 1000):
        plan = _plan(model, (150, 203), tta=tta, tiling=mode, tile=tile)
        results.append(predict_by_tiles(model, plan.tiling, reader(data), tta=tta))
    assert len({result.mask.tobytes() for result in results}) == 1
    assert len({result.probabilities.tobytes() for result in results}) == 1  # type: ignore[union-attr]
    plain = predict_by_tiles(model, plan.tiling, reader(data))
    assert plain.mask.tobytes() != results[0].mask.tobytes()


def test_classes_are_those_of_the_mean_with_a_threshold_too() -> None:
    made = unet_model(depth=2, classes=1)
    spec = made.spec.model_copy(update={"classes": ("no", "yes"), "activation": "sigmoid", "threshold": 0.4})
    model, data = model_from_module(made.network, spec), random_scene(2, (64, 64))
    plan = _plan(model, (64, 64), tta="flips")
    window = Window.from_bounds(0, 0, 64, 64)
    with_p = make_predictor(model, plan).predict(reader(data), window, probabilities=True)
    assert with_p.probabilities is not None
    assert (with_p.mask == (with_p.probabilities[1] >= np.float32(0.4))).all()
    assert (make_predictor(model, plan).predict(reader(data), window).mask == with_p.mask).all()


def test_what_is_no_number_is_found_in_every_image() -> None:
    network = torch.nn.Conv2d(2, 2, 1)
    spec = ModelSpec(name="n", bands=("a", "b"), classes=("a", "b"), scaling=Scaling.identity(2))
    model = model_from_module(network, spec)
    data = np.ones((2, 32, 48), np.float32)
    data[0, 3, 40] = np.inf
    tiling = exact_tiling(
        (32, 48), core_hw=(32, 48), halo_px=0, stride=1, margin_px=0, sizes=SizeRule(multiple=1), tile_px=1
    )
    with pytest.raises(ModelError, match="row 3, column 40"):
        predictor(model, tiling, tta="flips").predict(reader(data), Window.from_bounds(0, 0, 32, 48))


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    classes=st.integers(1, 6),
    strip_nbytes=st.integers(1, 5000),
    activation=st.sampled_from(["softmax", "sigmoid", "none"]),
)
def test_strips_add_what_the_whole_adds(
    shape: tuple[int, int, int], classes: int, strip_nbytes: int, activation: str
) -> None:
    names = tuple(f"c{i}" for i in range(max(2, classes)))
    spec = ModelSpec(name="s", bands=("b",), classes=names, scaling=Scaling.identity(1), activation=activation)
    batch, height, width = shape
    outputs = [torch.randn(batch, classes, height, width) for _ in range(2)]
    expected = sum(torch.stack([to_probabilities(one, spec) for one in output]) for output in outputs)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(augment, "_STRIP_BYTES", strip_nbytes)
        first = augment.add_probabilities(None, outputs[0], spec)
        before = first.clone()
        total = augment.add_probabilities(first, outputs[1], spec)
    assert total is first
    assert not torch.equal(before, total)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flips", 4), ("d4", 8)])
def test_images_are_different_and_undone(tta: Any, count: int) -> None:
    x = torch.arange(12.0).reshape(1, 3, 4)
    images = [symmetry.apply(x) for symmetry in symmetries(tta)]
    assert len({(image.shape, tuple(image.flatten().tolist())) for image in images}) == count
    assert all(torch.equal(s.undo(s.apply(x)), x) for s in symmetries(tta))


def test_the_plan_counts_forwards_and_takes_squares() -> None:
    model = unet_model(depth=2)
    plans = {tta: _plan(model, (3000, 1100), tta=tta, patch=None, backend="torch") for tta in ("none", "flips", "d4")}
    assert plans["none"].infer_s is not None
    flips = plans["flips"]
    one = flips.infer_s / flips.tiling.redundancy() / 3000 / 1100 * math.prod(flips.tiling.patch_hw)
    assert one == pytest.approx(4 * flips.forward_s)
    assert plans["d4"].summary()["forwards_per_patch"] == 8
    assert plans["d4"].tiling.rows.patch == plans["d4"].tiling.cols.patch
    assert len({plan.digest for plan in plans.values()}) == 3
    for shape in ((3000, 40), (40, 3000), (1, 1)):
        for options in ({}, {"patch": 128}, {"tiling": "blend"}, {"tiling": "blend", "patch": 128}):
            plan = _plan(model, shape, tta="d4", **{"patch": None, **options})
            assert plan.tiling.rows.patch == plan.tiling.cols.patch


def test_squares_are_parts_that_fit_the_memory() -> None:
    def seconds(patch_hw: tuple[Any, Any]) -> Any:
        return np.where(math.prod(patch_hw) <= 1000**2, math.prod(patch_hw), math.inf)

    options: dict[str, Any] = {"halo_px": 24, "stride": 4, "sizes": SizeRule(multiple=4), "square": True}
    for shape in ((4000, 4000), (4000, 300), (50, 7000)):
        core, other = balanced_core(shape, seconds=seconds, **options)
        assert core == other
        assert core % 4 == 0
        assert (core + 48) ** 2 <= 1000**2
        assert core >= min(40, *shape)
    assert balanced_core((100, 100), seconds=lambda patch_hw: np.full(patch_hw[0].shape, math.inf), **options) == (4, 4)


@pytest.mark.parametrize("tiling", ["exact", "blend"])
@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_a_run_with_another_augmentation_is_refused_and_verify_passes(tmp_path: Path, tta: str, tiling: str) -> None:
    path = write_scene(tmp_path / "s.tif", random_scene(2, (130, 90)), names=("b0", "b1"))
    model, out = unet_model(depth=2), tmp_path / "out"
    options: dict[str, Any] = {"patch": 96, "vectors": "none", "tiling": tiling}
    result = sm.segment(path, model, out, tta=tta, verify=4, **options)
    assert result.summary["verify"]["max_abs"] <= 1e-5
    with pytest.raises(OutputError, match="setting tta"):
        sm.segment(path, model, out, tta="none", **options)
    plain = sm.segment(path, model, tmp_path / "plain", **options)
    assert sha256(plain.mask_path) != sha256(result.mask_path)


def test_labels_inside_the_graph_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = unet_model(depth=2), random_scene(2, (64, 64))
    made: Predictor = make_predictor(model, _plan(model, (64, 64), tta="flips"))
    monkeypatch.setattr(made._engine, "label", lambda _: pytest.fail("labels cannot be averaged"))
    assert (made.predict(reader(data), Window.from_bounds(0, 0, 64, 64)).mask < 3).all()
