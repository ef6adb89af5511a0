"""What a worker has to compute with: memory, beside what its libraries take."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.control_groups import memory_left
from pipeline.infer import resident_bytes
from pipeline.run.workers import (
    decoding_threads,
    gpus,
    memory_per_worker,
    memory_told,
    num_workers,
    tiles_in_flight,
)

if TYPE_CHECKING:
    from pipeline.run.settings import SegmentSettings

_DEFAULT_MEMORY = {"cpu": 1_750_000_000, "cuda": 6_000_000_000}
"""Budget per worker unless --memory says otherwise: on a CPU, with libraries and caches, a run then stays below 2 GB;
beside a GPU as many tiles are in flight as there are cores to decode them."""
_SHARE_OF_MACHINE = 0.6
"""Of a machine's free memory: others may take some meanwhile, and files are kept in the rest."""
_MEASURING = 4
"""Times the usual budget: a patch that shows what a halo of 544 px saves takes 1.7 GB, at 784 bytes per pixel."""
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
    """What each worker has."""
    memory = _memory(settings, device)
    return Room(
        forward_bytes=memory - LIBRARIES_BYTES["cpu"] if device == "cpu" else _share_of_gpu(settings),
        host_bytes=memory - LIBRARIES_BYTES[device],
        in_flight=tiles_in_flight(settings, device),
        decoding_threads=decoding_threads(settings),
    )


def measuring_bytes(settings: SegmentSettings, device: str) -> int:
    """What a forward may take while the network is measured: without `--memory` more than usual, where it is there."""
    room = room_of(settings, device)
    if device != "cpu" or memory_told(settings):
        return room.forward_bytes
    most = min(_share_of_machine(settings), _MEASURING * _DEFAULT_MEMORY[device])
    return max(room.forward_bytes, most - LIBRARIES_BYTES[device])


def budget_left(settings: SegmentSettings, device: str) -> int:
    """Bytes that this process may still take. For what decides no pixel: it differs from one run to the next."""
    usual = min(_DEFAULT_MEMORY[device], memory_per_worker(settings) or _share_of_machine(settings))
    return (settings.memory or usual) - max(LIBRARIES_BYTES[device], resident_bytes())


def _share_of_gpu(settings: SegmentSettings) -> int:
    """Bytes for a forward, of what others leave of the GPU."""
    free, _ = torch.cuda.mem_get_info()
    sharing = math.ceil(num_workers(settings) / max(1, len(gpus())))
    return int(_SHARE_OF_GPU * free / sharing)


def _memory(settings: SegmentSettings, device: str) -> int:
    return memory_told(settings) or min(_DEFAULT_MEMORY[device], _share_of_machine(settings))


def _share_of_machine(settings: SegmentSettings) -> int:
    return int(_SHARE_OF_MACHINE * _available_bytes() / num_workers(settings))


def _available_bytes() -> int:
    """Memory that can still be had, of the machine and of this process's control group."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123
            fields = dict(line.split(":", 1) for line in file)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    left = memory_left()
    return available if left is None else max(0, min(available, int(left)))
