"""Lazy prediction: probabilities of a scene as a Dask-backed, georeferenced array."""

from __future__ import annotations

import functools
import uuid
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr

from pipeline.grid import Window
from pipeline.model import Model, load_model
from pipeline.run.plan import make_plan
from pipeline.run.settings import make_settings
from pipeline.run.tile_task import make_predictor

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.infer import Predictor
    from pipeline.run.plan import Plan
    from pipeline.scene import Limits, Scene


def predict(scene: Any, model: Model | str | Path, **options: Any) -> xr.DataArray:
    """Probabilities of a scene, computed when asked for, by any Dask scheduler.

    Args:
        scene: A `Scene`, a path, or an `xarray.DataArray` (band, y, x) with a CRS.
        model: From `load_model`, or its path.
        **options: As for `segment`: `patch`, `tiling`, `overlap`, `padding`, `bands`, `nodata`, `aoi`, `mask_layer`, …

    Returns:
        `(class, y, x)` float32, NaN on nodata and where the result is limited, one chunk per tile; coordinates `class`
        (names), `y` and `x` (centres, unless the grid is rotated) and `spatial_ref`, so that `.rio` and `.odc` know
        where it lies.

    Raises:
        PipelineError: As `segment` does, before any work.
    """
    from pipeline.run.resolve import bare_options, resolve_limits, resolve_scene  # noqa: PLC0415 - one way to open a scene for both

    settings = make_settings({"probabilities": True, **options})
    if not isinstance(model, Model):
        model = load_model(model, bare=bare_options(settings), trust_model=settings.trust_model)
    opened = resolve_scene(scene, model, settings)
    limits = resolve_limits(opened, settings)
    plan = make_plan(opened, model, settings)
    engine = _LazyEngine(uuid.uuid4().hex, opened, model, plan, limits)
    rows, cols = (_chunks(n, step) for n, step in zip(plan.tiling.shape, plan.tiling.tile_hw, strict=True))
    chunks = ((len(model.spec.classes),), rows, cols)
    array = da.map_blocks(
        engine, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32), name=f"scenemask-{engine.key}"
    )
    return _georeferenced(array, opened, model)


class _LazyEngine:
    """Called by Dask for one chunk; picklable, and one predictor per process."""

    def __init__(self, key: str, scene: Scene, model: Model, plan: Plan, limits: Limits) -> None:
        self.key = key
        self._parts = (scene, model, plan)
        self._limits = limits

    def __call__(self, block_info: Any = None) -> NDArray[np.float32]:
        (_, (row0, row1), (col0, col1)) = block_info[None]["array-location"]
        window = Window.from_bounds(int(row0), int(col0), int(row1), int(col1))
        scene, model, _ = self._parts
        wanted = self._limits.mask(window)
        if wanted is not None and not wanted.any():
            return np.full((len(model.spec.classes), *window.shape), np.nan, np.float32)
        result = _predictor(self).predict(scene.read_block, window, probabilities=True, output_valid=wanted)
        assert result.probabilities is not None
        return result.probabilities

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LazyEngine) and other.key == self.key

    def __dask_tokenize__(self) -> str:
        return self.key

    def build(self) -> Predictor:
        """The predictor of this process."""
        _, model, plan = self._parts
        return make_predictor(model, plan)


@functools.lru_cache(maxsize=4)
def _predictor(engine: _LazyEngine) -> Predictor:
    return engine.build()


def _chunks(size: int, step: int) -> tuple[int, ...]:
    return tuple(min(step, size - start) for start in range(0, size, step))


def _georeferenced(array: da.Array, scene: Scene, model: Model) -> xr.DataArray:
    box = scene.geobox
    coords: dict[str, Any] = {"class": list(model.spec.classes)}
    t = box.transform
    if t.b == 0 and t.d == 0:
        coords["y"] = t.f + t.e * (np.arange(box.height) + 0.5)
        coords["x"] = t.c + t.a * (np.arange(box.width) + 0.5)
    attrs: dict[str, Any] = {"GeoTransform": " ".join(repr(float(v)) for v in t.to_gdal())}
    if box.crs_wkt:
        attrs |= {"crs_wkt": box.crs_wkt, "spatial_ref": box.crs_wkt}
    coords["spatial_ref"] = xr.DataArray(0, attrs=attrs)
    result = xr.DataArray(array, dims=("class", "y", "x"), coords=coords, name="probability")
    result.encoding["grid_mapping"] = "spatial_ref"
    return result
