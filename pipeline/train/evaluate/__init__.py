"""How well a mask agrees with the truth (raster, polygons, sample): streamed, in bounded memory. Knows no network."""

from pipeline.train.evaluate.compare import EvaluateOptions, evaluate
from pipeline.train.evaluate.evaluation import SCHEMA, Evaluation

__all__ = ["SCHEMA", "EvaluateOptions", "Evaluation", "evaluate"]
