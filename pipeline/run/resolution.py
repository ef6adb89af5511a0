"""Pixels of a scene and of the images that a model was trained on: brought together, or told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import InputError, UsageError
from pipeline.scene.base import with_warning
from pipeline.scene.open import open_scene
from pipeline.scene.regrid import GridWish, pixel_size_m, regrid

if TYPE_CHECKING:
    from pipeline.model import Model
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Scene

WARN_AT, REFUSE_AT = 1.5, 4.0
"""Times by which pixels may be larger or smaller than the model's."""


def on_wished_grid(scene: Scene, model: Model | None, settings: SegmentSettings) -> Scene:
    """The scene on the grid that the settings ask for, with a warning where its pixels are not the model's.

    Raises:
        UsageError: CF-012, an unknown CRS; CF-090, `resolution: model` of a model that does not say.
        InputError: IN-055, a scene without a place; IN-056, pixels that are not the model's by far.
    """
    gsd_m = None if model is None else model.spec.gsd_m
    native_m = pixel_size_m(scene.geobox)
    placed = regrid(scene, _wish(settings, model), resampling=settings.resampling)
    if gsd_m is None or native_m is None:
        return placed
    grid_m = pixel_size_m(placed.geobox) or native_m
    # Averaged down a scene loses nothing that the model knew; blown up it has nothing to show.
    worst, what = max(
        (max(grid_m / gsd_m, gsd_m / grid_m), f"pixels of {grid_m:.4g} m, the model was trained on {gsd_m:.4g} m"),
        (native_m / gsd_m, f"pixels of {native_m:.4g} m by itself, the model was trained on {gsd_m:.4g} m"),
    )
    if worst >= REFUSE_AT and not settings.force_resolution:
        raise InputError(
            f"the scene has {what}",
            code="IN-056",
            title="Pixels are not those of the model",
            where=f"scene {scene.name}",
            fix="--resolution model where the scene is finer; --force-resolution if it is meant so",
        )
    if worst < WARN_AT:
        return placed
    return with_warning(placed, f"the scene has {what}; what it sees there may be something else (--resolution model).")


def _wish(settings: SegmentSettings, model: Model | None) -> GridWish:
    resolution = settings.resolution
    metres = resolution if isinstance(resolution, float) else None
    if resolution == "model" and model is not None:
        metres = model.spec.gsd_m
        if metres is None:
            raise UsageError(
                f"--resolution model was given; model {model.spec.name!r} does not say on what pixels it was trained",
                code="CF-090",
                title="Model has no resolution",
                where="--resolution",
                fix="give it in metres, or set gsd_m in the model's ModelSpec",
            )
    align = None
    if settings.align is not None:
        align = open_scene(settings.align).geobox
    return GridWish(crs=settings.crs, align=align, resolution_m=metres)
