"""What a worker has to compute with: memory, beside what its libraries take."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.control_groups import memory_limit
from pipeline.infer import resident_bytes
from pipeline.run.workers import (
    decoding_threads,
    gpus,
    memory_per_worker,
    num_workers,
    on_this_machine,
    tiles_in_flight,
)

if TYPE_CHECKING:
    from pipeline.run.settings import SegmentSettings

_DEFAULT_MEMORY = {"cpu": 1_750_000_000, "cuda": 6_000_000_000}
"""Budget per worker unless --memory says otherwise: on a CPU, with libraries and caches, a run then stays below 2 GB;
beside a GPU as many tiles are in flight as there are cores to decode them."""
_SHARE_OF_MACHINE = 0.6
"""Of a machine's free memory: others may take some meanwhile, and files are kept in the rest."""
_SHARE_OF_JOB = 0.8
"""Of what a batch system gives a worker, which it ends when it takes more."""
LIBRARIES_BYTES = {"cpu": 680_000_000, "cuda": 1_550_000_000}
"""Resident size of a worker before its first tile (PyTorch, OpenVINO, GDAL, Dask): 674 MB measured; with CUDA's
libraries 1.55 GB."""
_SHARE_OF_GPU = 0.8
"""Of a GPU's free memory: others may take some meanwhile, and PyTorch's allocator leaves gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a worker has to compute with."""

    forward_bytes: int
    """For a forward, of the host or the device."""
    host_bytes: int
    """For the tiles in flight, beside the libraries."""
    in_flight: int
    """Tiles that it holds at a time."""
    decoding_threads: int
    """Threads that decode one window."""


def room_of(settings: SegmentSettings, device: str) -> Room:
    """What each worker of this machine has: by `--memory`, else the usual."""
    return _room(settings, device, _memory(settings, device))


def rooms_of(settings: SegmentSettings, device: str) -> list[Room]:
    """What each worker of this machine has, then what it could have without `--memory`, twice as much each time.

    On a CPU whose memory this process knows how to share: beside a GPU forwards have their own.
    """
    memory = _memory(settings, device)
    rooms = [_room(settings, device, memory)]
    if device != "cpu" or settings.memory is not None:
        return rooms
    most = _most(settings)
    while memory < most:
        memory = min(2 * memory, most)
        rooms.append(_room(settings, device, memory))
    return rooms


def budget_left(settings: SegmentSettings, device: str, *, planned_bytes: int = 0) -> int:
    """Bytes that this process may still take. For what decides no pixel: it differs from one run to the next.

    Args:
        settings: What was asked for.
        device: `cpu` or `cuda`.
        planned_bytes: What the run was planned to take, where that is more than usual.
    """
    return max(_memory(settings, device), planned_bytes) - max(LIBRARIES_BYTES[device], resident_bytes())


def _room(settings: SegmentSettings, device: str, memory: int) -> Room:
    return Room(
        forward_bytes=memory - LIBRARIES_BYTES["cpu"] if device == "cpu" else _share_of_gpu(settings),
        host_bytes=memory - LIBRARIES_BYTES[device],
        in_flight=tiles_in_flight(settings, device),
        decoding_threads=decoding_threads(settings),
    )


def _share_of_gpu(settings: SegmentSettings) -> int:
    """Bytes for a forward, of what others leave of the GPU."""
    free, _ = torch.cuda.mem_get_info()
    sharing = math.ceil(num_workers(settings) / max(1, len(gpus())))
    return int(_SHARE_OF_GPU * free / sharing)


def _memory(settings: SegmentSettings, device: str) -> int:
    there = memory_per_worker(settings) or _share_of_machine(settings)
    return settings.memory or min(_DEFAULT_MEMORY[device], there)


def _most(settings: SegmentSettings) -> int:
    """What a worker may take where it pays; nothing beyond the usual on hosts whose workers somebody else started."""
    told = memory_per_worker(settings)
    if told is not None:
        return int(_SHARE_OF_JOB * told)
    return _share_of_machine(settings) if on_this_machine(settings) else 0


def _share_of_machine(settings: SegmentSettings) -> int:
    return int(_SHARE_OF_MACHINE * _available_bytes() / num_workers(settings))


def _available_bytes() -> int:
    """Memory that can still be had, no more than this process's control group allows."""
    available: float = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            fields = dict(line.split(":", 1) for line in file)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    limit = memory_limit()
    return int(available if limit is None else min(available, limit))
