"""The settings of `train`: one frozen, validated value, read from a YAML file; `key=value` changes single entries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UsageError
from pipeline.legend import ClassInfo, Legend, default_legend
from pipeline.model.unet import Norm, Upsampling
from pipeline.quantities import parse_seconds, sentence, unknown_key
from pipeline.yaml_file import parse_scalar, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

Share = Annotated[float, Field(ge=0, lt=1)]
NOT_LEARNT = "ignore"
"""Stands for a class where pixels are not to be learnt from."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ClassSettings(_Part):
    """One class."""

    name: str
    """What people call it."""
    color: tuple[int, int, int] | None = None
    """Red, green, blue, 0-255; from the default palette if not given."""
    background: bool = False
    """Not polygonized unless asked for."""


class LabelledScene(_Part):
    """A scene and what is known about it. Paths start at the folder in which the command is given."""

    scene: Path
    """Any raster that `segment` takes."""
    labels: Path
    """A raster of class values, in any CRS, or polygons of any OGR format, in any CRS."""
    attribute: str | None = None
    """Of polygons: which attribute holds the class, by name or value."""
    label_class: str | None = None
    """Of polygons: the class of all of them, where no attribute tells."""
    values: dict[str, str | None] = {}
    """Value of the raster or the attribute -> name of the class, or null for pixels that are not to be learnt from;
    values that are numbers or names of classes need no entry."""
    unlabelled: str | None = None
    """Of polygons: the class of pixels that lie in none, or `ignore` if they are not to be learnt from; the background
    if not given, `ignore` where there is none."""
    bands: tuple[str, ...] | None = None
    """Bands by name or number in the model's order, where they differ from `bands`."""
    assume_crs: str | None = None
    """CRS of a scene that has none."""
    allow_no_crs: bool = False
    """Take a scene without CRS; labels are then a raster of the same size."""
    nodata: float | None = None
    """Value that means "no data", where the file declares none."""


class SplitSettings(_Part):
    """Which parts are learnt from, which choose the best state, which are kept for the end."""

    areas: Path | None = None
    """Polygons whose attribute `split` is train, val or test; their outer rectangles in pixels count. Overlap is an
    error. Without it, blocks are drawn."""
    block_px: int = Field(default=512, ge=32)
    """Side of drawn blocks, in the network's pixels. Neighbouring pixels look alike, so small blocks flatter."""
    val: Share = 0.15
    """Share of the blocks that choose the best state."""
    test: Share = 0.15
    """Share of the blocks that nothing is chosen by."""
    guard_px: int = Field(default=16, ge=0)
    """Left out along both sides of a border between parts, in the network's pixels."""
    seed: int = 0
    """Which blocks."""


class ChipSettings(_Part):
    """What a training sample is."""

    size: int = Field(default=192, ge=16)
    """Side in the network's pixels; a multiple of its stride."""
    batch: int = Field(default=8, ge=1)
    """Samples per step."""
    sampling: Literal["random", "balanced", "grid"] = "balanced"
    """random: anywhere; balanced: half of them around a class that is drawn evenly; grid: side by side, each as often
    as the others."""
    limit: int | None = Field(default=None, ge=1)
    """Learn from so many places only, drawn once: for experiments with few labels."""


class NetworkSettings(_Part):
    """The U-Net."""

    depth: int = Field(default=4, ge=1, le=7)
    """Poolings; the output stride is 2**depth."""
    width: int = Field(default=16, ge=1)
    """Channels of the first level; doubled at each level."""
    norm: Norm = "batch"
    """Normalisation after each convolution; group and instance cannot be tiled exactly."""
    upsampling: Upsampling = "transposed"
    """How the decoder doubles its resolution."""
    skips: bool = True
    """Skip connections."""
    dropout: Share = 0.0
    """At the bottleneck."""
    start: Path | None = None
    """Model folder to start from, instead of random weights: of the same depth, width and norm. The first layer is
    adapted to other bands, and the last one begins anew with other classes."""
    freeze_steps: int = Field(default=0, ge=0)
    """Steps at the beginning during which the encoder stays as it is."""
    encoder: str | None = None
    """An encoder of segmentation-models-pytorch, such as `resnet34`, in place of our own; its result is written as
    ONNX. Width, norm, up-sampling, skips, dropout and start then have no meaning."""
    encoder_weights: str | None = None
    """What the encoder learnt before, such as `imagenet`; fetched when first used."""

    @property
    def stride(self) -> int:
        """What the sides of its inputs are multiples of; encoders have five poolings."""
        return 32 if self.encoder is not None else 1 << self.depth


class LossSettings(_Part):
    """Weights of the parts of the loss."""

    cross_entropy: float = Field(default=1.0, ge=0)
    """Of cross-entropy."""
    dice: float = Field(default=1.0, ge=0)
    """Of one minus the Dice coefficient, mean over classes (Milletari et al. 2016)."""
    focal: float = Field(default=0.0, ge=0)
    """Of the focal loss (Lin et al. 2017)."""
    focal_gamma: float = Field(default=2.0, ge=0)
    """How much the focal loss looks away from what is easy."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Of cross-entropy and focal loss; balanced: by the square root of how rare a class is."""
    border_weight: float = Field(default=0.0, ge=0)
    """w0 of Ronneberger et al. 2015, there 10: how much more pixels between two near objects count; 0: not at all."""
    border_sigma_px: float = Field(default=5.0, gt=0)
    """How near."""


class AugmentSettings(_Part):
    """What chips go through before they are learnt from; 0 turns a step off."""

    flips: bool = True
    """Mirrored at random."""
    turns: bool = True
    """Turned by multiples of 90 degrees."""
    rotate_deg: float = Field(default=0.0, ge=0, le=180)
    """Turned by up to this."""
    scale: Share = 0.0
    """Enlarged or shrunk by up to this share."""
    elastic_px: float = Field(default=0.0, ge=0)
    """Standard deviation of random displacements on a coarse grid, smoothly interpolated (Ronneberger et al. 2015: 10
    px on 3 x 3 points)."""
    elastic_grid: int = Field(default=3, ge=2)
    """Points of that grid along a side."""
    brightness: float = Field(default=0.0, ge=0)
    """Each band shifted by up to so many standard deviations of it."""
    contrast: Share = 0.0
    """Each band stretched by up to this share."""
    band_drop: Share = 0.0
    """Probability that a band of a chip is missing."""


class ScheduleSettings(_Part):
    """How long and how fast."""

    steps: int = Field(default=2000, ge=1)
    """Optimiser steps at most."""
    time_limit: Annotated[float, Field(gt=0)] | None = None
    """Time at most, such as `20 min`; the learning rate then follows whichever of time and steps is further."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """The highest."""
    shape: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    """one-cycle: a linear rise over a tenth, then a cosine to 0; cosine: without the rise."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of AdamW (Loshchilov & Hutter 2019)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; more is scaled down."""
    check_every: int = Field(default=100, ge=1)
    """Steps between looks at the validation part; a checkpoint is written at each."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many looks without a better one."""

    @model_validator(mode="before")
    @classmethod
    def _time(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("time_limit"), str):
            return {**data, "time_limit": parse_seconds(data["time_limit"])}
        return data


class TrainSettings(_Part):
    """Everything that decides what is learnt."""

    name: str
    """Of the model."""
    description: str = ""
    """A sentence for the model's card."""
    licence: str | None = None
    """Of the weights, as SPDX writes it."""
    provenance: str = ""
    """Where the data come from, for the model's card."""
    classes: tuple[ClassSettings | str, ...] = Field(min_length=2)
    """In order of their mask values, from 0."""
    scenes: tuple[LabelledScene, ...] = Field(min_length=1)
    """What is learnt from."""
    bands: tuple[str, ...] | None = None
    """Bands by name or number, in the model's order; all of the first scene if not given."""
    downsample: int = Field(default=1, ge=1)
    """The network sees means of squares of so many pixels: more of the surroundings, fewer details."""
    split: SplitSettings = SplitSettings()
    """Parts to learn from, to choose by, and to report on."""
    chips: ChipSettings = ChipSettings()
    """Samples."""
    network: NetworkSettings = NetworkSettings()
    """The U-Net."""
    loss: LossSettings = LossSettings()
    """What is made small."""
    augment: AugmentSettings = AugmentSettings()
    """Random changes of samples."""
    schedule: ScheduleSettings = ScheduleSettings()
    """Length and speed."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forwards in training; auto: bfloat16 where the device computes in it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the network; all cores if not given."""
    seed: int = 0
    """Of weights, samples and their changes."""
    tensorboard: bool = False
    """Also write curves for TensorBoard, which has to be installed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = self.class_names
        if len(set(names)) != len(names):
            msg = f"a class is named twice: {', '.join(names)}"
            raise ValueError(msg)
        if sum(isinstance(c, ClassSettings) and c.background for c in self.classes) > 1:
            msg = "one class at most can be the background"
            raise ValueError(msg)
        for scene in self.scenes:
            unlabelled = None if scene.unlabelled == NOT_LEARNT else scene.unlabelled
            for name in (scene.label_class, unlabelled, *scene.values.values()):
                if name is not None and name not in names:
                    msg = f"{unknown_key(name, names).replace('key', 'class')}; classes are {', '.join(names)}"
                    raise ValueError(msg)
        if self.chips.size % (stride := self.network.stride):
            msg = f"chips.size={self.chips.size} is not a multiple of the network's stride {stride}"
            raise ValueError(msg)
        weights = self.loss.class_weights
        if isinstance(weights, tuple) and len(weights) != len(names):
            msg = f"loss.class_weights has {len(weights)} values for {len(names)} classes"
            raise ValueError(msg)
        if not (self.loss.cross_entropy or self.loss.dice or self.loss.focal):
            msg = "the loss has no part: give cross_entropy, dice or focal a weight"
            raise ValueError(msg)
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in order of their values."""
        return tuple(c if isinstance(c, str) else c.name for c in self.classes)

    @property
    def legend(self) -> Legend:
        """Names, colours and the background."""
        background = next((c.name for c in self.classes if isinstance(c, ClassSettings) and c.background), None)
        plain = default_legend(list(self.class_names), background=background)
        return Legend(
            tuple(
                ClassInfo(value=info.value, name=info.name, color=given.color, background=info.background)
                if isinstance(given, ClassSettings) and given.color
                else info
                for info, given in zip(plain, self.classes, strict=True)
            )
        )


def read_train_settings(path: Path, changes: Iterable[str] = ()) -> TrainSettings:
    """The settings of a file, with single entries changed.

    Args:
        path: YAML.
        changes: Such as `schedule.steps=500` or `scenes.0.labels=other.gpkg`.

    Raises:
        UsageError: CF-001, CF-003, CF-004 as for any settings file; CF-005 with all that is wrong.
    """
    document = read_yaml(path)
    for change in changes:
        _change(document, change)
    return make_train_settings(document, where=str(path))


def make_train_settings(document: dict[str, Any], *, where: str = "") -> TrainSettings:
    """Settings from plain values.

    Raises:
        UsageError: CF-005 with all that is wrong.
    """
    try:
        return TrainSettings.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(map(_problem, _without_echoes(error.errors())))
        raise UsageError(
            problems,
            code="CF-005",
            title="Settings are wrong",
            where=where,
            fix="configs/train/full.yaml explains every key",
        ) from error


def to_yaml(settings: TrainSettings) -> str:
    """The settings as resolved, to be read again."""
    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _without_echoes(details: list[Any]) -> list[Any]:
    """Without "too short" of a list whose entries were wrong themselves."""
    wrong_inside = {detail["loc"][0] for detail in details if len(detail["loc"]) > 1}
    return [d for d in details if d["type"] != "too_short" or d["loc"][0] not in wrong_inside]


def _problem(detail: Any) -> str:
    if detail["type"] != "extra_forbidden":
        return sentence(detail)
    *parents, key = detail["loc"]
    known = _known_keys([p for p in parents if isinstance(p, str)])
    inside = f"{'.'.join(map(str, parents))}: " if parents else ""
    return inside + unknown_key(str(key), known)


_PARTS: dict[str, type[BaseModel]] = {
    "scenes": LabelledScene,
    "classes": ClassSettings,
    "split": SplitSettings,
    "chips": ChipSettings,
    "network": NetworkSettings,
    "loss": LossSettings,
    "augment": AugmentSettings,
    "schedule": ScheduleSettings,
}


def _known_keys(parents: list[str]) -> list[str]:
    model: type[BaseModel] = _PARTS.get(parents[0], TrainSettings) if parents else TrainSettings
    return list(model.model_fields)


def _change(document: dict[str, Any], change: str) -> None:
    """Put one `dotted.key=value` in its place."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise UsageError(
            f"got {change!r}, expected key=value",
            code="CF-007",
            title="Command line is wrong",
            fix="write for example schedule.steps=500",
        )
    place: Any = document
    *parents, last = key.split(".")
    for parent in parents:
        place = (
            place[int(parent)]
            if _indexes(place, parent)
            else place.setdefault(parent, {})
            if isinstance(place, dict)
            else None
        )
        if not isinstance(place, dict | list):
            raise UsageError(
                f"{key}: {parent} holds no keys",
                code="CF-007",
                title="Command line is wrong",
                fix="configs/train/full.yaml explains every key",
            )
    if _indexes(place, last):
        place[int(last)] = parse_scalar(text)
    elif isinstance(place, dict):
        place[last] = parse_scalar(text)
    else:
        raise UsageError(
            f"{key}: the list has {len(place)} entries",
            code="CF-007",
            title="Command line is wrong",
            fix="entries are counted from 0",
        )


def _indexes(place: Any, key: str) -> bool:
    return isinstance(place, list) and key.isdecimal() and int(key) < len(place)
