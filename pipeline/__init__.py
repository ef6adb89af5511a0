"""Scenemask segments whole satellite and aerial scenes.

    import pipeline as sm

    scene = sm.open_scene("s2.tif")
    model = sm.load_model("models/water")
    plan = sm.plan(scene, model)
    probabilities = sm.predict(scene, model)
    result = sm.segment(scene, model, "out/")
    polygons = sm.vectorize("out/mask.tif")
    evaluation = sm.evaluate("out/mask.tif", "truth.tif")

Names are imported when first used: importing the package takes no time and starts nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.errors import PipelineError
    from pipeline.model import Model, load_model, model_from_module, save_model
    from pipeline.run.plan import Plan
    from pipeline.run.predict import predict
    from pipeline.run.preview_plan import plan
    from pipeline.run.segment import RunResult, segment
    from pipeline.run.vectorize import vectorize
    from pipeline.scene import Scene, open_scene
    from pipeline.train.evaluate import Evaluation, evaluate

_HOMES = {
    "Evaluation": "pipeline.train.evaluate",
    "Model": "pipeline.model",
    "PipelineError": "pipeline.errors",
    "Plan": "pipeline.run.plan",
    "RunResult": "pipeline.run.segment",
    "Scene": "pipeline.scene",
    "evaluate": "pipeline.train.evaluate",
    "load_model": "pipeline.model",
    "model_from_module": "pipeline.model",
    "open_scene": "pipeline.scene",
    "plan": "pipeline.run.preview_plan",
    "predict": "pipeline.run.predict",
    "save_model": "pipeline.model",
    "segment": "pipeline.run.segment",
    "vectorize": "pipeline.run.vectorize",
}

__all__ = [
    "Evaluation",
    "Model",
    "PipelineError",
    "Plan",
    "RunResult",
    "Scene",
    "evaluate",
    "load_model",
    "model_from_module",
    "open_scene",
    "plan",
    "predict",
    "save_model",
    "segment",
    "vectorize",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    msg = f"module 'pipeline' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
