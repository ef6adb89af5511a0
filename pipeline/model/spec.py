"""What a model expects and gives: bands, scaling, classes. Frozen values, validated when built."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.legend import ClassInfo, Legend, default_legend

if TYPE_CHECKING:
    from collections.abc import Sequence

Activation = Literal["none", "softmax", "sigmoid"]


class Scaling(BaseModel):
    """input = (DN * scale + offset - mean) / std, per band, the same for every tile of every scene."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: tuple[float, ...]
    """Multiplies stored values, one per band."""
    offset: tuple[float, ...]
    """Added after `scale`, one per band."""
    mean: tuple[float, ...]
    """Subtracted from physical values, one per band."""
    std: tuple[float, ...]
    """Divides last, one per band; never 0."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {len(self.scale), len(self.offset), len(self.mean), len(self.std)}
        if len(lengths) != 1:
            msg = f"scale, offset, mean and std need one value per band each, got {sorted(lengths)} values"
            raise ValueError(msg)
        if any(value == 0 for value in self.std):
            msg = "std must not be 0"
            raise ValueError(msg)
        return self

    @classmethod
    def identity(cls, bands: int) -> Scaling:
        """The scaling that leaves stored values alone."""
        return cls(scale=(1.0,) * bands, offset=(0.0,) * bands, mean=(0.0,) * bands, std=(1.0,) * bands)

    def gain_and_bias(self) -> tuple[list[float], list[float]]:
        """The same as one multiplication and one addition: input = DN * gain + bias."""
        gain = [s / d for s, d in zip(self.scale, self.std, strict=True)]
        bias = [(o - m) / d for o, m, d in zip(self.offset, self.mean, self.std, strict=True)]
        return gain, bias


class ModelSpec(BaseModel):
    """The semantic part of `model.json`; it and the weights make the model's digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    """What people call the model."""
    bands: tuple[str, ...] = Field(min_length=1)
    """Names of the input bands, in order."""
    classes: tuple[str, ...] = Field(min_length=1)
    """Names of the classes, in order of their mask values."""
    colors: tuple[tuple[int, int, int], ...] = ()
    """Red, green, blue per class; the default palette when empty."""
    background: str | None = None
    """Class that is not polygonized unless asked for."""
    scaling: Scaling
    """From stored values to the network's input."""
    values: Literal["stored", "physical"] = "stored"
    """What scaling begins with: stored values, as in the images that the model was trained on; or physical ones, made
    by the scene's own scale and offset."""
    activation: Activation = "softmax"
    """What turns the network's output into probabilities; `none` when they come out already."""
    outputs: int | None = Field(default=None, ge=1)
    """Channels that come out: one per class, or 1 for two classes. None: 1 with `sigmoid`, else one per class."""
    multilabel: bool = False
    """Whether a pixel may have several classes, or none: each class is decided by a threshold of its own."""
    threshold: float | tuple[float, ...] = 0.5
    """Probability from which on a class is there: class 1 of a network with one output channel, or with `multilabel`
    each class; one number for all, or one per class."""
    gsd_m: float | None = None
    """Ground sampling distance of the training images, in metres."""
    padding: Literal["reflect", "edge", "zero", "network"] = "reflect"
    """How the scene is extended beyond its rim unless the user says otherwise."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, count in (("scaling", len(self.scaling.scale)),):
            if count != len(self.bands):
                msg = f"{what} has {count} values per constant, the model has {len(self.bands)} bands"
                raise ValueError(msg)
        if self.colors and len(self.colors) != len(self.classes):
            msg = f"{len(self.colors)} colors for {len(self.classes)} classes"
            raise ValueError(msg)
        if self.background is not None and self.background not in self.classes:
            msg = f"background {self.background!r} is not one of the classes {list(self.classes)}"
            raise ValueError(msg)
        self._check_thresholds()
        alone = self.outputs == 1 and self.activation != "softmax" and not self.multilabel
        binary = alone and len(self.classes) == 2  # noqa: PLR2004
        if self.outputs is not None and self.outputs != len(self.classes) and not binary:
            msg = f"{self.outputs} outputs for {len(self.classes)} classes; 1 serves two classes without softmax"
            raise ValueError(msg)
        return self

    def _check_thresholds(self) -> None:
        per_class = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        if not all(0.0 < value < 1.0 for value in per_class):
            msg = f"threshold must lie between 0 and 1, got {', '.join(map(str, per_class))}"
            raise ValueError(msg)
        if len(per_class) != 1 and (not self.multilabel or len(per_class) != len(self.classes)):
            wanted = f"{len(self.classes)}, one per class" if self.multilabel else "one: classes exclude each other"
            msg = f"{len(per_class)} thresholds, expected {wanted}"
            raise ValueError(msg)
        if self.multilabel and self.activation == "softmax":
            msg = "softmax makes classes exclude each other; a multilabel network has activation sigmoid or none"
            raise ValueError(msg)

    @property
    def num_outputs(self) -> int:
        """Channels that the network must put out."""
        if self.outputs is not None:
            return self.outputs
        return 1 if self.activation == "sigmoid" and not self.multilabel else len(self.classes)

    @property
    def binary(self) -> bool:
        """Whether one output channel decides between two classes that exclude each other."""
        return self.num_outputs == 1 and len(self.classes) > 1 and not self.multilabel

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One per output channel where thresholds decide; empty where the largest output does."""
        if not (self.binary or self.multilabel):
            return ()
        given = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        return given if len(given) == self.num_outputs else given * self.num_outputs

    def legend(self) -> Legend:
        """Classes with values and colours."""
        legend = default_legend(list(self.classes), background=self.background)
        colors = self.colors or tuple(c.color for c in legend)
        return Legend(
            tuple(
                ClassInfo(value=c.value, name=c.name, color=color, background=c.background)
                for c, color in zip(legend, colors, strict=True)
            ),
            multilabel=self.multilabel,
        )

    def digest(self) -> str:
        """SHA-256 of the semantic fields, hex."""
        said = self.model_dump(mode="json")
        if self.values == "stored":  # what all models took before it could be said
            del said["values"]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def broadcast(values: Sequence[float], bands: int, *, what: str) -> tuple[float, ...]:
    """One value per band: a single value serves all.

    Raises:
        ValueError: Neither one value nor one per band.
    """
    if len(values) == 1:
        return tuple(values) * bands
    if len(values) != bands:
        msg = f"{what} has {len(values)} values for {bands} bands"
        raise ValueError(msg)
    return tuple(values)
