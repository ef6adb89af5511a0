"""On a CPU a forward's input is made while the one before it is computed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.grid import Tiling, Window, exact_tiling
from pipeline.infer.network_input import Scaler
from pipeline.model.torch_engine import TorchEngine
from tests.networks import predict_by_tiles, predictor, random_scene, reader, unet_model

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.model import Model

SHAPE = (150, 300)
LONG_S = 10.0


@pytest.fixture(scope="module")
def model() -> Model:
    return unet_model(depth=2, width=8)


@pytest.fixture
def tiling(model: Model) -> Tiling:
    halo, stride = model.traits.halo_px or 0, model.traits.stride
    sizes = model.traits.sizes
    return exact_tiling(SHAPE, core_hw=(50, 60), halo_px=halo, stride=stride, margin_px=0, sizes=sizes, tile_px=60)


class _Watched:
    """Counts inputs that were made; holds up the forwards until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self.go = threading.Event()
        self.waited = True
        fill, label = Scaler.fill, TorchEngine.label

        def watched(scaler: Scaler, *args: Any, **options: Any) -> Tensor:
            x = fill(scaler, *args, **options)
            self.made += 1
            return x

        def held_up(engine: TorchEngine, x: Tensor) -> Tensor | None:
            self.waited &= self.go.wait(LONG_S)
            return label(engine, x)

        monkeypatch.setattr(Scaler, "fill", watched)
        monkeypatch.setattr(TorchEngine, "label", held_up)

    def until(self, made: int) -> bool:
        """Whether so many are made before long."""
        end = time.monotonic() + LONG_S
        while self.made < made and time.monotonic() < end:
            time.sleep(0.01)
        return self.made >= made


def test_one_input_is_made_meanwhile_and_no_more(model: Model, tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six tiles that wait one is scaled; none is overwritten before it is computed."""
    data = reader(random_scene(2, SHAPE))
    expected = predict_by_tiles(model, tiling, data).mask
    watched = _Watched(monkeypatch)
    tiles, shared = tiling.tiles(), predictor(model, tiling)
    assert len(tiles) > 6
    with ThreadPoolExecutor(6) as pool:
        coming = [pool.submit(shared.predict, data, tile.core) for tile in tiles]
        meanwhile = watched.until(2)
        time.sleep(0.3)
        made = watched.made
        watched.go.set()
        results = [each.result() for each in coming]
    assert meanwhile
    assert made == 2
    assert watched.waited
    whole = Window.from_bounds(0, 0, *SHAPE)
    for tile, result in zip(tiles, results, strict=True):
        np.testing.assert_array_equal(result.mask, expected[tile.core.slices_in(whole)])


def test_d9_without_memory_for_the_next_input_it_is_made_in_its_turn(
    model: Model, tiling: Tiling, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = reader(random_scene(2, SHAPE))
    tile = tiling.tiles()[0]
    expected = predictor(model, tiling).predict(data, tile.core)
    fill, failed = Scaler.fill, []

    def short(scaler: Scaler, *args: Any, **options: Any) -> Tensor:
        if not threading.current_thread().name.startswith("device"):
            failed.append(1)
            raise MemoryError
        return fill(scaler, *args, **options)

    monkeypatch.setattr(Scaler, "fill", short)
    found = predictor(model, tiling).predict(data, tile.core)
    assert failed
    assert found.splits == 0
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_a_failure_leaves_the_input_to_the_next(model: Model, tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles fail than inputs there are; the one after them is computed."""
    data, shared, tile = reader(random_scene(2, SHAPE)), predictor(model, tiling), tiling.tiles()[0]
    expected = shared.predict(data, tile.core)
    label = TorchEngine.label

    def broken(*_: Any) -> Tensor | None:
        raise ValueError("broken")

    monkeypatch.setattr(TorchEngine, "label", broken)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            shared.predict(data, tile.core)
    monkeypatch.setattr(TorchEngine, "label", label)
    np.testing.assert_array_equal(shared.predict(data, tile.core).mask, expected.mask)
