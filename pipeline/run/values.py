"""What a scene's values mean and what the model takes: brought together once, and looked at.

A scene says it by its metadata (physical = stored x scale + offset: MTD of Sentinel-2, MTL of Landsat, STAC, a file's
tags), a model by its scaling. Where both do and differ, the scene's values are converted to those that the model was
trained on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import PipelineError
from pipeline.run.scene_samples import sample_blocks
from pipeline.scene.base import with_warning
from pipeline.scene.rescale import RescaledScene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.model import Model
    from pipeline.run.settings import SegmentSettings
    from pipeline.scene import Band, Scene

_SAMPLE_PX = 256
_SAME = 1e-9
_TAG_GAIN = (0.05, 20.0)
"""A file's own tag is believed within this: beyond it, its unit is another one than the model's, such as percent."""
_FAR_OUT = 10.0
"""Standard deviations from the mean, after scaling, that hardly a pixel is away."""
_REFLECTANCE = (-0.5, 5.0)
"""What physical values lie in, of models that scale and do not standardise."""
_DARK = 0.005


def in_the_models_values(scene: Scene, model: Model, settings: SegmentSettings) -> Scene:
    """The scene with values as the model takes them; the scene itself where it has them already."""
    constants = _constants(scene, model)
    choice = settings.values
    if choice == "model" or all(_is_plain(pair) for pair in constants.values()):
        return scene
    if choice == "auto":
        agreed, remark = _believed(scene, model, constants)
        if not agreed:
            return scene if remark is None else with_warning(scene, remark)
    truth = "; ".join(dict.fromkeys(band.truth for band in scene.bands))
    return RescaledScene(scene=scene, constants=constants, truth=truth, warnings=scene.warnings)


def say_values(scene: Scene, model: Model) -> str:
    """One sentence: whose word on scale and offset counted."""
    if isinstance(scene, RescaledScene):
        gains = {f"x {gain:.6g} {bias:+.6g}" for gain, bias in scene.constants.values()}
        shown = gains.pop() if len(gains) == 1 else "per band"
        return f"scaled as the scene says ({scene.truth}); to the model's stored values: {shown}"
    stored = "physical values as they are stored"
    return stored if model.spec.values == "physical" else "stored values, scaled as the model says"


def range_warning(scene: Scene, model: Model) -> str | None:
    """A sentence where sampled values are not what the model's scaling expects; else None."""
    gain, bias = (np.array(v)[:, None] for v in model.spec.scaling.gain_and_bias())
    limits = _expected(model)
    if limits is None:
        return None
    side = min(_SAMPLE_PX, *scene.geobox.shape)
    try:
        blocks = [data[:, valid] for data, valid in sample_blocks(scene, side)]
    except PipelineError:
        return None  # the run meets it again, and says at which tile
    if not blocks:
        return None
    stored = np.concatenate(blocks, axis=1).astype(np.float64)
    low, high = np.percentile(stored * gain + bias, (1, 99), axis=1)
    for k, band in enumerate(model.spec.bands):
        if low[k] < limits[0] or high[k] > limits[1]:
            lowest, highest = np.percentile(stored[k], (1, 99))
            return (
                f"band {band} holds {lowest:.6g} to {highest:.6g} (98 % of sampled pixels), which scaling makes "
                f"{low[k]:.4g} to {high[k]:.4g}; the model expects {limits[0]:g} to {limits[1]:g}. Other units?"
            )
    if limits is _REFLECTANCE and high.max() < _DARK:
        return (
            f"the model's scaling leaves the scene almost black ({high.max():.2g}, of {stored.max():.6g} stored): "
            "values may be scaled already, or have 8 bit in place of 16."
        )
    return None


def one_class_warning(model: Model, class_px: Sequence[int]) -> str | None:
    """A sentence where all pixels became one class of a model that says nothing of its values; else None.

    Args:
        model: A bare network file most likely, trained on reflectance and given what the file stores.
        class_px: Pixels of each class, in order.
    """
    found = [info.name for info, pixels in zip(model.spec.legend(), class_px, strict=True) if pixels]
    if len(found) != 1 or len(class_px) == 1 or model.spec.multilabel or _expected(model) is not None:
        return None
    return (
        f"every pixel became {found[0]}. The network was given stored values as they are: was it trained on others "
        "(--scale, --mean, --std), or does it put out probabilities already (--activation none)?"
    )


def _constants(scene: Scene, model: Model) -> dict[int, tuple[float, float]]:
    """Band number -> (gain, bias) from what the scene stores to what the model takes."""
    scaling, found = model.spec.scaling, {}
    for band, scale, offset in zip(scene.bands, scaling.scale, scaling.offset, strict=True):
        wanted = (1.0, 0.0) if model.spec.values == "physical" else (scale, offset)
        found[band.index] = band.scale / wanted[0], (band.offset - wanted[1]) / wanted[0]
    return found


def _is_plain(pair: tuple[float, float]) -> bool:
    return math.isclose(pair[0], 1.0, rel_tol=_SAME) and abs(pair[1]) < 1e-6  # noqa: PLR2004 - of a stored unit


def _believed(scene: Scene, model: Model, constants: dict[int, tuple[float, float]]) -> tuple[bool, str | None]:
    """Whether the scene's word on its values counts; if not, what a person should know of it."""
    if model.spec.values == "physical":
        return True, None
    scaling = model.spec.scaling
    if all(pair == (1.0, 0.0) for pair in zip(scaling.scale, scaling.offset, strict=True)):
        offsets = [band.name for band in scene.bands if band.offset]
        text = f"bands {', '.join(offsets)} are stored with an offset, and the model takes stored values as they are."
        return False, text if offsets else None
    if not any(_is_told(band) for band in scene.bands):
        return False, None
    odd = [band for band in scene.bands if _is_told(band) and band.truth == "file" and not _near(constants[band.index])]
    if odd or not all(_is_told(band) for band in scene.bands):
        one = (odd or scene.bands)[0]
        return False, (
            f"the scene's file says stored x {one.scale:g} {one.offset:+g}, the model stored x {scaling.scale[0]:g} "
            f"{scaling.offset[0]:+g}: taken as the model says; --values scene if the file is right."
        )
    return True, None


def _is_told(band: Band) -> bool:
    return (band.scale, band.offset) != (1.0, 0.0)


def _near(pair: tuple[float, float]) -> bool:
    return _TAG_GAIN[0] <= abs(pair[0]) <= _TAG_GAIN[1]


def _expected(model: Model) -> tuple[float, float] | None:
    """Bounds of the network's input; None where nothing is known of it."""
    scaling = model.spec.scaling
    if any(pair != (0.0, 1.0) for pair in zip(scaling.mean, scaling.std, strict=True)):
        return -_FAR_OUT, _FAR_OUT
    scaled = any(pair != (1.0, 0.0) for pair in zip(scaling.scale, scaling.offset, strict=True))
    return _REFLECTANCE if scaled or model.spec.values == "physical" else None
