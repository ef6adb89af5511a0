"""A smaller halo than the network's own, where the user allows a measured error for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.infer import Scaler
from pipeline.model import make_engine, to_probabilities
from pipeline.run.scene_samples import sample_blocks

if TYPE_CHECKING:
    from pipeline.infer import DeviceThread
    from pipeline.model import EngineSpec, Model
    from pipeline.scene import Scene

_FARTHEST_PX = 256
"""Halos up to this are tried; beyond it the whole halo is taken."""


def tolerated_halo(
    scene: Scene, model: Model, spec: EngineSpec, thread: DeviceThread, *, tolerance: float
) -> tuple[int, float]:
    """(halo, error): the smallest halo at which no probability of sampled windows changes by more than `tolerance`.

    A window is computed once with context around it and once without; the error at a distance from the cut is the
    largest difference there or farther inside.

    Args:
        scene: Where windows are sampled.
        model: Tiled exactly: its halo is known.
        spec: What computes; float32 is used.
        thread: Where forwards run.
        tolerance: Largest |Δp| that is allowed.

    Returns:
        A multiple of the output stride, the network's whole halo when nothing smaller will do; error 0 then.
    """
    traits = model.traits
    whole, stride = traits.halo_px or 0, traits.stride
    tried = min(whole, _FARTHEST_PX)
    small = traits.sizes.at_least(2 * tried + 2 * stride)
    offset = -(-tried // stride) * stride
    large = traits.sizes.at_least(small + 2 * offset)
    if min(scene.geobox.shape) < large:
        return whole, 0.0
    worst = np.zeros(tried // stride + 1)
    for data, valid in sample_blocks(scene, large):
        errors = thread.run(lambda d=data, v=valid: _errors(model, spec, d, v, small, offset))  # type: ignore[misc]
        worst = np.maximum(worst, [errors[step * stride] for step in range(len(worst))])
    good = np.flatnonzero(worst <= tolerance)
    if not len(good) or good[0] * stride >= whole:
        return whole, 0.0
    return int(good[0]) * stride, float(worst[good[0]])


def _errors(
    model: Model,
    spec: EngineSpec,
    data: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    valid: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    small: int,
    offset: int,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Largest |Δp| at each distance from the cut or farther inside, in pixels of the input."""
    margin = model.traits.margin_px
    engine = make_engine(model, spec.model_copy(update={"precision": "float32", "one_size": False}))
    with torch.inference_mode():
        invalid = torch.from_numpy(~valid).to(spec.device)
        x = Scaler(model.spec.scaling)(torch.from_numpy(data).to(spec.device), invalid)
        context = to_probabilities(engine.run(x)[0], model.spec).cpu().numpy().copy()
        part = x[..., offset : offset + small, offset : offset + small].contiguous()
        alone = to_probabilities(engine.run(part)[0], model.spec).cpu().numpy()
    side = alone.shape[-1]
    difference = np.abs(alone - context[:, offset : offset + side, offset : offset + side]).max(axis=0)
    ramp = np.minimum(np.arange(side), np.arange(side)[::-1]) + margin
    distance = np.minimum(ramp[:, None], ramp[None, :])
    at = np.zeros(int(distance.max()) + 1, np.float32)
    np.maximum.at(at, distance.ravel(), difference.ravel())
    return np.asarray(np.maximum.accumulate(at[::-1])[::-1])
