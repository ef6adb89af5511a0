"""The engine that a process keeps for the next scene."""

from __future__ import annotations

import pytest

from pipeline.model import EngineSpec
from pipeline.run import tile_task
from tests.networks import unet_model


def test_an_engine_serves_its_own_model_specification_and_patch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = unet_model(seed=0), unet_model(seed=1)
    spec = EngineSpec(backend="torch", device="cpu", precision="float32", threads=1, one_size=True)
    first = tile_task._engine_for(one, spec, (64, 64))
    assert tile_task._engine_for(one, spec, (64, 64)) is first
    for model, asked, patch_hw in (
        (other, spec, (64, 64)),
        (one, spec.model_copy(update={"precision": "bfloat16"}), (64, 64)),
        (one, spec, (64, 96)),
    ):
        kept = tile_task._engine_for(one, spec, (64, 64))
        assert tile_task._engine_for(model, asked, patch_hw) is not kept
    monkeypatch.setitem(tile_task._tools, "a run", object())
    tile_task.drop_engine()
    assert tile_task._last_made, "tiles are being computed with it"
    monkeypatch.undo()
    tile_task.drop_engine()
    assert not tile_task._last_made


@pytest.mark.parametrize("keep", [False, True])
def test_forgetting_a_run_drops_its_engine_unless_told_to_keep_it(*, keep: bool) -> None:
    model = unet_model()
    spec = EngineSpec(backend="torch", device="cpu", precision="float32", threads=1, one_size=True)
    tile_task._engine_for(model, spec, (64, 64))
    tile_task.forget("no such run", keep_engine=keep)
    assert bool(tile_task._last_made) is keep
    tile_task.drop_engine(unless_of=model)
    assert bool(tile_task._last_made) is keep
    del model
    assert not tile_task._last_made
