"""From a network's output to probabilities and classes: what its activation, thresholds and arg-max mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.model.engine_spec import Engine
    from pipeline.model.spec import ModelSpec

NOT_FINITE = 255
"""Label where the network's output is NaN or infinite; no class has this value."""
_LARGEST_LABEL = NOT_FINITE - 1


def to_probabilities(output: Tensor, spec: ModelSpec) -> Tensor:
    """Network output `(class, y, x)` -> probabilities `(class, y, x)` with one row per class of the spec.

    A single channel becomes two rows: 1 - p and p.
    """
    if spec.activation == "softmax":
        return torch.softmax(output, dim=0)
    p = torch.sigmoid(output) if spec.activation == "sigmoid" else output
    return torch.cat([1.0 - p, p]) if spec.binary else p


def decide(probabilities: Tensor, spec: ModelSpec) -> Tensor:
    """Classes from probabilities `(class, y, x)`: `(y, x)`, or `(class, y, x)` of 0 and 1 with a multilabel model."""
    if spec.binary:
        return probabilities[1] >= spec.thresholds[0]
    if spec.multilabel:
        return probabilities >= _per_channel(spec.thresholds, probabilities)
    return probabilities.argmax(dim=0)


def decide_output(output: Tensor, spec: ModelSpec) -> Tensor:
    """The same from the network's own output, before its activation.

    The low bits of an activation may depend on where in memory a pixel lies; outputs are compared as they are.
    Activations rise, so the order of outputs is that of probabilities, and a threshold has an output of its own.
    """
    if not spec.thresholds:
        return output.argmax(dim=0)
    above = output >= _per_channel(output_thresholds(spec), output)
    return above if spec.multilabel else above[0]


def output_thresholds(spec: ModelSpec) -> tuple[float, ...]:
    """`spec.thresholds` as outputs before the activation: with sigmoid the logit of each."""
    if spec.activation != "sigmoid":
        return spec.thresholds
    return tuple(math.log(p) - math.log1p(-p) for p in spec.thresholds)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    # Filled on the device: nothing has to travel there, which a recorded forward may not wait for.
    return torch.cat([torch.full((1, 1, 1), value, dtype=torch.float32, device=like.device) for value in values])


def has_labels(spec: ModelSpec) -> bool:
    """Whether every class has a place among the labels of an engine."""
    return spec.multilabel or len(spec.classes) <= _LARGEST_LABEL + 1


def labels_of(engine: Engine, x: Tensor, spec: ModelSpec) -> Tensor:
    """Classes of a network input `(1, band, y, x)`: `(y', x')`, or `(class, y', x')` with a multilabel model."""
    labels = engine.label(x)
    return labels if labels is not None else decide_output(engine.run(x)[0], spec)
