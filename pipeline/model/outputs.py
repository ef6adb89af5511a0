"""Do the values that a network puts out look like what its description says they are?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pipeline.model.spec import ModelSpec

_CLOSE = 1e-3


def output_range(output: Tensor) -> dict[str, float]:
    """Smallest and largest value, and smallest and largest sum over classes, of `(batch, class, y, x)`."""
    total = output.sum(dim=1)
    values = {"min": output.min(), "max": output.max(), "sum_min": total.min(), "sum_max": total.max()}
    return {name: float(value) for name, value in values.items()}


def output_warning(spec: ModelSpec, found: Mapping[str, float] | None) -> str | None:
    """What a person should know, one sentence; None where values and description agree.

    Args:
        spec: With the activation that is declared.
        found: `output_range` on noise; None where it was not measured.
    """
    if found is None:
        return None
    bounded = found["min"] >= -_CLOSE and found["max"] <= 1 + _CLOSE
    sums_to_one = found["sum_min"] >= 1 - _CLOSE and found["sum_max"] <= 1 + _CLOSE
    span = f"{found['min']:.3g} to {found['max']:.3g}"
    if spec.activation == "none" and not bounded:
        return (
            f"the model is declared to put out probabilities, yet its outputs range from {span} on noise; "
            "declare activation softmax or sigmoid if these are logits"
        )
    if spec.activation == "softmax" and spec.num_outputs > 1 and bounded and sums_to_one:
        return (
            "the model is declared to put out logits, yet its outputs look like probabilities (they sum to 1); "
            "declare activation none, else probabilities come out too even"
        )
    if spec.activation == "sigmoid" and bounded and found["max"] - found["min"] > _CLOSE and found["min"] >= 0:
        return (
            f"the model is declared to put out logits, yet its outputs range from {span}, as probabilities do; "
            "declare activation none, else every pixel is above the threshold"
        )
    return None
