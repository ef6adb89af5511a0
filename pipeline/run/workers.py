"""How this machine's cores and GPUs are shared out among worker processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from pipeline.run.cores import available_cores

if TYPE_CHECKING:
    from pipeline.infer import Device
    from pipeline.run.settings import SegmentSettings

_MOST_ON_CPU = 3
"""Forwards take all cores; more readers only interrupt them."""
_MOST_ON_GPU = 8
"""Each tile is decoded on all cores: the first ones are there soon."""


def device_wanted(settings: SegmentSettings) -> Device:
    """`auto`, `cpu` or `cuda`; a cluster of GPUs wants GPUs."""
    return "cuda" if settings.cluster == "cuda" else settings.device


def num_workers(settings: SegmentSettings) -> int:
    """Workers of this machine: as many as asked for, with `--cluster cuda` on each GPU."""
    return settings.workers * (max(1, len(gpus())) if settings.cluster == "cuda" else 1)


def cores_per_worker(settings: SegmentSettings) -> int:
    """Cores that one worker may use: those of this process, shared out."""
    return max(1, available_cores() // num_workers(settings))


def tiles_in_flight(settings: SegmentSettings, device: str) -> int:
    """Tiles that one worker holds at a time, so that reading, computing and writing overlap.

    Beside a GPU the cores are there for all else: decoding alone takes several.
    """
    if device == "cpu":
        return min(_MOST_ON_CPU, max(2, os.cpu_count() or 1))
    return min(_MOST_ON_GPU, max(_MOST_ON_CPU, cores_per_worker(settings)))


def decoding_threads(settings: SegmentSettings, device: str) -> int:
    """Threads that decode one window: beside a GPU, whose forwards need no cores, all of them."""
    return 1 if device == "cpu" else cores_per_worker(settings)


def gpus() -> tuple[str, ...]:
    """GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple((named or [str(number) for number in range(count)])[:count])


def environment_of(worker: int, device: str) -> dict[str, str]:
    """What a worker process must find in its environment: one GPU each, in turn, whose number there is 0."""
    names = gpus() if device == "cuda" else ()
    return {"CUDA_VISIBLE_DEVICES": names[worker % len(names)]} if names else {}
