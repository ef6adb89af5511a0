"""D7: logits taken for probabilities, and the reverse, are noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.model import ModelSpec, Scaling, model_from_module


class _Then(nn.Module):
    """A convolution and an activation."""

    def __init__(self, outputs: int, activation: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, outputs, 3, padding=1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = 3 * self.conv(x)
        if self.activation == "softmax":
            return y.softmax(1)
        return y.sigmoid() if self.activation == "sigmoid" else y


def _warnings(inside: str, declared: str, outputs: int = 3) -> list[str]:
    classes = ("a", "b") if outputs == 1 else ("a", "b", "c")
    options: dict[str, Any] = {"outputs": 1} if outputs == 1 else {}
    spec = ModelSpec.model_validate(
        {
            "name": "toy",
            "bands": ("b0", "b1"),
            "classes": classes,
            "scaling": Scaling.identity(2),
            "activation": declared,
            **options,
        }
    )
    return model_from_module(_Then(outputs, inside), spec).warnings


@pytest.mark.parametrize(
    ("inside", "declared", "outputs", "words"),
    [
        ("none", "none", 3, "declared to put out probabilities"),
        ("softmax", "softmax", 3, "they sum to 1"),
        ("sigmoid", "sigmoid", 1, "as probabilities do"),
    ],
)
def test_d7_what_comes_out_is_not_what_is_declared(inside: str, declared: str, outputs: int, words: str) -> None:
    found = _warnings(inside, declared, outputs)
    assert len(found) == 1
    assert words in found[0]
    assert "declare activation" in found[0]


@pytest.mark.parametrize(
    ("inside", "declared", "outputs"),
    [("none", "softmax", 3), ("softmax", "none", 3), ("sigmoid", "none", 1), ("none", "sigmoid", 1)],
)
def test_d7_what_is_declared_is_not_warned_about(inside: str, declared: str, outputs: int) -> None:
    assert _warnings(inside, declared, outputs) == []


class _OfReflectance(nn.Module):
    """Probabilities of what lies between 0 and 1; what does not gets none."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (20 * (x[:, :1] - 0.2)).sigmoid()
        return y * (x.abs().amax(dim=(1, 2, 3), keepdim=True) < 1)


def test_probabilities_of_a_network_that_says_nothing_on_standardised_values_are_noticed() -> None:
    options: dict[str, Any] = {"name": "toy", "bands": ("b0", "b1"), "classes": ("a", "b"), "outputs": 1}
    spec = ModelSpec.model_validate({**options, "scaling": Scaling.identity(2), "activation": "sigmoid"})
    [warning] = model_from_module(_OfReflectance(), spec).warnings
    assert "declare activation none" in warning
