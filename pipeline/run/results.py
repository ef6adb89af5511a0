"""A scene's files from its recorded tiles: compared where that was asked for, put together, traced and staged."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.infer import give_back_freed
from pipeline.run.events import StageFinished, StageStarted
from pipeline.run.finish import Finished, Finisher
from pipeline.run.room import budget_left
from pipeline.run.tile_task import drop_engine
from pipeline.run.verify import Verification, Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.model import Model
    from pipeline.run.events import Listener
    from pipeline.run.output import Delivery
    from pipeline.run.plan import Plan
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Limits, Scene
    from pipeline.store import Staging, TileRecord, TileStore
    from pipeline.vector import Hands


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recipe:
    """What files are made of; with the model, which travels apart."""

    scene: Scene
    settings: SegmentSettings
    plan: Plan
    limits: Limits
    store: TileStore
    records: Mapping[int, TileRecord]
    """Of all tiles."""
    out_dir: Path
    scratch: Path
    store_id: str | None = None
    """By which workers on other hosts know the store; None on this machine."""
    delivery: Delivery | None = None
    """For a worker that makes files on its own machine and sends them; None where it makes them in `out_dir`."""


def make_files(
    recipe: Recipe,
    model: Model,
    *,
    staging: Staging,
    scratch: Path,
    tell: Listener,
    check: Callable[[], None],
    hands: Hands | None = None,
) -> tuple[Finished, Verification | None]:
    """Stage all files but run.json.

    Args:
        recipe: Of the scene.
        model: Of the run.
        staging: Where they are made.
        scratch: For what polygons need meanwhile.
        tell: Hears of stages.
        check: Called often; raises when the run is to stop.
        hands: Who traces polygons; this process if not given.

    Raises:
        ModelError: MD-013, sampled windows differ from the tiles.
    """
    verified = _verify(recipe, model, tell, check) if recipe.settings.verify else None
    check()
    give_back_freed()  # of tiles; what comes now asks for pieces of other sizes
    finished = Finisher(
        scene=recipe.scene,
        model=model,
        settings=recipe.settings,
        plan=recipe.plan,
        store=recipe.store,
        records=recipe.records,
        staging=staging,
        scratch=scratch,
        tell=tell,
        check=check,
        hands=hands,
    ).run()
    check()
    return finished, verified


def _verify(recipe: Recipe, model: Model, tell: Listener, check: Callable[[], None]) -> Verification:
    """Compare sampled windows."""
    started = time.monotonic()
    tell(StageStarted(name="verify"))
    drop_engine()
    give_back_freed()  # the budget knows what the process holds
    made = Verifier(
        scene=recipe.scene,
        model=model,
        plan=recipe.plan,
        limits=recipe.limits,
        store=recipe.store,
        budget_bytes=budget_left(recipe.settings, recipe.plan.engine.device),
        check_stop=check,
    ).run(recipe.records, count=recipe.settings.verify)
    tell(StageFinished(name="verify", seconds=time.monotonic() - started))
    return made
