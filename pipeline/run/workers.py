"""How many workers there are, and how cores, memory and GPUs are shared out among them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from pipeline.cores import available_cores
from pipeline.run.clusters.options import AddressOptions, CudaOptions, LocalOptions, StartedOptions, cluster_options

if TYPE_CHECKING:
    from pipeline.infer import Device
    from pipeline.run.settings import SegmentSettings

_MOST_ON_CPU = 3
"""Forwards take all cores; more readers only interrupt them."""
_MOST_ON_GPU = 8
"""Each tile is decoded on all cores: the first ones are there soon."""


def device_wanted(settings: SegmentSettings) -> Device:
    """`auto`, `cpu` or `cuda`; a cluster of GPUs wants GPUs."""
    return "cuda" if isinstance(cluster_options(settings), CudaOptions) else settings.device


def workers_wanted(settings: SegmentSettings) -> int:
    """Workers that were asked for, with `cuda` for each GPU: `--workers` beats the cluster's file."""
    if "workers" in settings.model_fields_set:
        return settings.workers
    return int(getattr(cluster_options(settings), "workers", settings.workers))


def num_workers(settings: SegmentSettings) -> int:
    """Workers that share this machine: with `--cluster cuda` as many as asked for on each GPU, none of other hosts."""
    options = cluster_options(settings)
    if isinstance(options, StartedOptions):
        return 1
    return workers_wanted(settings) * (max(1, len(gpus())) if isinstance(options, CudaOptions) else 1)


def cores_per_worker(settings: SegmentSettings) -> int:
    """Cores that one worker may use: those that its cluster gives it, or those of this process, shared out."""
    told = cores_of_cluster(settings)
    return max(1, available_cores() // num_workers(settings)) if told is None else told


def cores_of_cluster(settings: SegmentSettings) -> int | None:
    """Cores that its cluster gives a worker; None where it shares this machine."""
    told: int | None = getattr(cluster_options(settings), "cores", None)
    return told


def memory_per_worker(settings: SegmentSettings) -> int | None:
    """Bytes that its cluster gives a worker; None where it shares this machine."""
    options = cluster_options(settings)
    return options.memory if isinstance(options, StartedOptions) else None


def memory_told(settings: SegmentSettings) -> int | None:
    """Bytes that `--memory` gives a worker, or its cluster; None where nobody has said."""
    return settings.memory or memory_per_worker(settings)


def on_this_machine(settings: SegmentSettings) -> bool:
    """Whether workers run here, so that what this process sees of cores, memory and GPUs is what they have."""
    return isinstance(cluster_options(settings), LocalOptions | CudaOptions)


def starts_workers(settings: SegmentSettings) -> bool:
    """Whether workers are started for the run, so that their threads are ours."""
    return not isinstance(cluster_options(settings), AddressOptions)


def tiles_in_flight(settings: SegmentSettings, device: str) -> int:
    """Tiles that one worker holds at a time, so that reading, computing and writing overlap.

    Beside a GPU the cores are there for all else: decoding alone takes several.
    """
    if device == "cpu":
        return min(_MOST_ON_CPU, max(2, os.cpu_count() or 1))
    return min(_MOST_ON_GPU, max(_MOST_ON_CPU, cores_per_worker(settings)))


def decoding_threads(settings: SegmentSettings) -> int:
    """Threads that decode one window: all of a worker's cores.

    On a CPU forwards use them too, but only one window is read at a time there; a GPU's forwards need none.
    """
    return cores_per_worker(settings)


def reads_in_order(settings: SegmentSettings, device: str) -> bool:
    """Whether one worker reads all tiles one after the other: with several the tile above is seldom its own."""
    return device == "cpu" and on_this_machine(settings) and num_workers(settings) == 1


def gpus() -> tuple[str, ...]:
    """GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple((named or [str(number) for number in range(count)])[:count])


def environment_of(worker: int, device: str) -> dict[str, str]:
    """What a worker process must find in its environment: one GPU each, in turn, whose number there is 0."""
    names = gpus() if device == "cuda" else ()
    return {"CUDA_VISIBLE_DEVICES": names[worker % len(names)]} if names else {}
