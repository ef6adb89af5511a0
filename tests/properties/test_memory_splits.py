"""Where a device's memory does not suffice for a patch, its halves give the same result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pipeline as sm
from pipeline.errors import ResourceError
from pipeline.grid import SizeRule, Tiling, Window, blend_tiling, exact_tiling, halves, parts_for
from pipeline.infer import is_device_lost, is_out_of_memory
from pipeline.model import EngineSpec, left_out_px
from pipeline.model.torch_engine import TorchEngine
from tests.networks import predict_by_tiles, predictor, random_scene, reader, unet_model
from tests.scenes import save_unet, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.model import Model


class _SmallDevice:
    """Makes forwards fail as a GPU does, above so many pixels; counts what was tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most_px: int) -> None:
        self.tried: list[int] = []
        run, label = TorchEngine.run, TorchEngine.label

        def check(x: torch.Tensor) -> None:
            self.tried.append(x.shape[0] * x.shape[-1] * x.shape[-2])
            if self.tried[-1] > most_px:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        def small_run(engine: TorchEngine, x: torch.Tensor) -> torch.Tensor:
            check(x)
            return run(engine, x)

        def small_label(engine: TorchEngine, x: torch.Tensor) -> Any:
            check(x)
            return label(engine, x)

        monkeypatch.setattr(TorchEngine, "run", small_run)
        monkeypatch.setattr(TorchEngine, "label", small_label)


def _tiling(model: Model, shape: tuple[int, int], core: int, *, trim_px: int = 0, network: bool = False) -> Tiling:
    traits = model.traits
    return exact_tiling(
        shape,
        core_hw=(core, core),
        halo_px=traits.halo_px or 0,
        stride=traits.stride,
        margin_px=traits.margin_px or left_out_px(model.network, trim_px),
        sizes=traits.sizes,
        tile_px=core,
        network_padding=network,
    )


@pytest.mark.parametrize("case", ["plain", "trimmed", "network", "valid"])
def test_d9_halves_give_what_the_patch_gives(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet_model(depth=2, width=8, padding="valid" if case == "valid" else "same")
    trim = (model.traits.halo_px or 0) if case == "trimmed" else 0
    shape = (310, 205)
    data = random_scene(2, shape)
    tiling = _tiling(model, shape, 200, trim_px=trim, network=case == "network")
    options = {"trim_px": trim, "padding": "network" if case == "network" else "reflect"}
    whole = predict_by_tiles(model, tiling, reader(data), **options)
    device = _SmallDevice(monkeypatch, 120 * 160)
    split = predict_by_tiles(model, tiling, reader(data), **options)
    assert whole.probabilities is not None
    assert split.probabilities is not None
    assert np.abs(whole.probabilities - split.probabilities).max() <= 1e-5
    top = np.sort(whole.probabilities, axis=0)
    assert ((whole.mask == split.mask) | (top[-1] - top[-2] < 2e-5)).all()
    assert max(device.tried) > 120 * 160


def test_d9_a_size_that_failed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet_model(depth=2, width=8)
    tiling = _tiling(model, (400, 400), 200)
    device = _SmallDevice(monkeypatch, 160 * 250)
    engine = predictor(model, tiling)
    splits = [engine.predict(reader(random_scene(2, (400, 400))), tile.core).splits for tile in tiling.tiles()]
    assert splits == [1, 1, 1, 1]
    assert sum(tried > 160 * 250 for tried in device.tried) == 1


def test_d9_a_corner_of_one_stride_loses_what_it_does_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its core cannot be cut, but its patch is as large as any."""
    model = unet_model(depth=2, width=8)
    shape = (403, 402)
    tiling = _tiling(model, shape, 200)
    data = random_scene(2, shape)
    whole = predict_by_tiles(model, tiling, reader(data))
    _SmallDevice(monkeypatch, 160 * 250)
    split = predict_by_tiles(model, tiling, reader(data))
    assert whole.probabilities is not None
    assert split.probabilities is not None
    assert np.abs(whole.probabilities - split.probabilities).max() <= 1e-5


def test_d9_half_the_batch_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = unet_model(depth=2, norm="instance"), (150, 203)
    tiling = blend_tiling(
        shape, patch_px=64, overlap_px=16, stride=4, margin_px=0, sizes=model.traits.sizes, tile_px=64
    )
    data = reader(random_scene(2, shape))
    expected = predict_by_tiles(model, tiling, data, batch=8)
    device = _SmallDevice(monkeypatch, 2 * 64 * 64)
    engine = predictor(model, tiling, batch=8)
    results = [engine.predict(data, tile.core, probabilities=True) for tile in tiling.tiles()]
    assert [px // 64**2 for px in device.tried[:3]] == [8, 4, 2]
    assert set(device.tried[3:]) == {2 * 64 * 64}
    assert sum(result.splits for result in results) == 2
    for tile, result in zip(tiling.tiles(), results, strict=True):
        rows, cols = tile.core.slices_in(Window.from_bounds(0, 0, *shape))
        assert expected.probabilities is not None
        assert result.probabilities is not None
        assert np.abs(result.probabilities - expected.probabilities[:, rows, cols]).max() < 1e-5
    with pytest.raises(torch.OutOfMemoryError):
        predictor(model, tiling, batch=8, deterministic=True).predict(data, tiling.tiles()[0].core)


@pytest.mark.parametrize(
    ("text", "memory", "lost"),
    [
        ("CUDA error: out of memory", True, False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, False),
        ("Failed to allocate memory for requested buffer of size 2097152", True, False),
        ("CUDA error: device-side assert triggered", False, True),
        ("shape mismatch", False, False),
    ],
)
def test_d9_d10_memory_is_no_lost_gpu(text: str, *, memory: bool, lost: bool) -> None:
    assert (is_out_of_memory(RuntimeError(text)), is_device_lost(RuntimeError(text))) == (memory, lost)


def test_d9_no_halves_where_bits_or_context_must_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", smooth_values(2, (150, 170)), names=("b0", "b1"))
    model = save_unet(tmp_path / "model", depth=2)
    options: dict[str, Any] = {"patch": 128, "tile": 1, "vectors": "none", "backend": "torch"}
    reference = sm.segment(scene, model, tmp_path / "reference", **options)
    assert reference.summary["deterministic"] is True
    _SmallDevice(monkeypatch, 100 * 100)
    split = sm.segment(scene, model, tmp_path / "split", **options)
    assert split.summary["deterministic"] is False
    assert split.summary["tiles"]["split_for_memory"] == split.summary["tiles"]["total"]
    assert sorted(split.summary["tiles"]["split"]) == list(range(split.summary["tiles"]["total"]))
    assert reference.summary["tiles"]["split"] == []
    assert split.summary["classes"][0]["pixels"] == pytest.approx(reference.summary["classes"][0]["pixels"], abs=5)
    for name, more in (("bits", {"deterministic": True}), ("blend", {"tiling": "blend"})):
        with pytest.raises(ResourceError, match="out of memory") as caught:
            sm.segment(scene, model, tmp_path / name, **options, **more)
        assert caught.value.code == "RS-003"
        assert not (tmp_path / name / "mask.tif").exists()


def test_d9_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet_model(depth=2, width=8)
    tiling = _tiling(model, (100, 100), 64)

    def fail(_engine: TorchEngine, _x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(TorchEngine, "run", fail)
    with pytest.raises(RuntimeError, match="device-side"):
        predict_by_tiles(model, tiling, reader(random_scene(2, (100, 100))))


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    core=st.integers(1, 20),
    halo=st.sampled_from([0, 16, 48]),
    network=st.booleans(),
)
def test_halves_cover_the_core_once_with_the_halo_around(
    height: int, width: int, core: int, halo: int, *, network: bool
) -> None:
    sizes = SizeRule(multiple=16)
    tiling = exact_tiling(
        (height, width),
        core_hw=(16 * core, 16 * core),
        halo_px=halo,
        stride=16,
        margin_px=0,
        sizes=sizes,
        tile_px=1,
        network_padding=network,
    )
    for tile in tiling.tiles():
        for patch in tiling.patches(tile.core):
            parts = halves(patch, tiling, sizes)
            if not parts:
                continue
            assert sum(part.core.num_pixels for part in parts) == patch.core.num_pixels
            assert len(parts) == 1 or parts[0].core.intersect(parts[1].core).num_pixels == 0
            for part in parts:
                assert part.input.num_pixels < patch.input.num_pixels
                assert part.input.intersect(patch.input) == part.input
                assert part.core.intersect(patch.core) == part.core
                for axis in ("row", "col"):
                    first, stop = getattr(part.input, f"{axis}_off"), getattr(part.input, f"{axis}_stop")
                    a, b = getattr(part.core, f"{axis}_off"), getattr(part.core, f"{axis}_stop")
                    outer = getattr(patch.input, f"{axis}_off"), getattr(patch.input, f"{axis}_stop")
                    assert (first - outer[0]) % 16 == (stop - first) % 16 == 0
                    assert first <= a - halo or first == outer[0]
                    assert stop >= -(-b // 16) * 16 + halo or stop == outer[1]
                off = part.output_off_hw
                assert (part.input.row_off + off[0], part.input.col_off + off[1]) == (
                    part.core.row_off,
                    part.core.col_off,
                )


def test_deterministic_is_part_of_the_plan() -> None:
    spec = EngineSpec(backend="torch", device="cpu", precision="float32", threads=1, one_size=True, deterministic=True)
    assert EngineSpec.model_validate(spec.model_dump()) == spec


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    core=st.integers(1, 20),
    most_px=st.integers(1, 200_000),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_parts_for_a_window_cover_it_once_and_are_small(
    height: int, width: int, core: int, most_px: int, place: tuple[float, float]
) -> None:
    sizes = SizeRule(multiple=16)
    tiling = exact_tiling(
        (height, width), core_hw=(16 * core, 16 * core), halo_px=16, stride=16, margin_px=0, sizes=sizes, tile_px=1
    )
    row, col = int(place[0] * (height - 1)), int(place[1] * (width - 1))
    window = Window.from_bounds(row, col, min(row + 40, height), min(col + 40, width))
    own = list(tiling.patches(window))
    parts = parts_for(window, own, tiling, sizes, most_px=most_px)
    covered = np.zeros(window.shape, int)
    for part in parts:
        inside = part.core.intersect(window)
        assert inside.num_pixels
        covered[inside.slices_in(window)] += 1
        assert part.input.num_pixels <= most_px or not halves(part, tiling, sizes)
    assert (covered == 1).all()
    assert all(patch in parts for patch in own if patch.input.num_pixels <= most_px)
