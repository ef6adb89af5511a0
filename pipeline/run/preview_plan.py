"""The dry run: what `segment` would do, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.model import Model, load_model
from pipeline.run.plan import Plan, make_plan
from pipeline.run.resolve import bare_options, resolve_scene
from pipeline.run.settings import make_settings

if TYPE_CHECKING:
    from pathlib import Path


def plan(scene: Any, model: Model | str | Path, **options: Any) -> Plan:
    """The frozen plan that `segment` would follow with the same options.

    Args:
        scene: Path, `xarray.DataArray` (band, y, x) with a CRS, or a `Scene`.
        model: From `load_model`, or its path.
        **options: Fields of `SegmentSettings`.

    Raises:
        PipelineError: As `segment` would, before any work.
    """
    settings = make_settings(options)
    if not isinstance(model, Model):
        model = load_model(model, bare=bare_options(settings), trust_model=settings.trust_model)
    return make_plan(resolve_scene(scene, model, settings), model, settings)
