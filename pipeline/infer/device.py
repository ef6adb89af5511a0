"""One thread per process that all forwards go through: the device is never shared by two at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

Device = Literal["auto", "cpu", "cuda"]

_T = TypeVar("_T")


def resolve_device(wanted: Device) -> Literal["cpu", "cuda"]:
    """`auto` takes CUDA where there is one.

    Raises:
        UsageError: CF-020 when CUDA is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError(
            "--device cuda was asked for, PyTorch finds no CUDA device",
            code="CF-020",
            title="No CUDA device",
            fix="use --device auto or cpu; `scenemask doctor` shows what PyTorch sees",
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """An array as a tensor on the device, there when this returns; called by the thread that made it.

    On its way to a GPU it goes through pinned memory and a stream of its own, so that a forward goes on meanwhile.

    Args:
        array: Contiguous and writable; on the CPU the tensor shares its memory.
        device: Where to.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    stream = getattr(_local, "stream", None)
    if stream is None:
        stream = _local.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        there = tensor.pin_memory().to(device, non_blocking=True)
        arrived = _mark()
    arrived.synchronize()
    there.record_stream(torch.cuda.default_stream(device))  # where it is used: until then its memory is not given away
    return there


def to_host(tensor: Tensor) -> Callable[[], NDArray[np.generic]]:
    """Begin to bring a tensor to the host, behind the forward that makes it; what is returned waits until it is there.

    The thread that launches forwards need not wait. On a CPU the tensor is there already, and the array shares its
    memory.
    """
    if tensor.device.type != "cuda":
        return tensor.numpy
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    arrived = _mark()

    def wait() -> NDArray[np.generic]:
        arrived.synchronize()
        return np.asarray(there.numpy())

    return wait


_local = threading.local()


def _mark() -> torch.cuda.Event:
    """A place in the current stream to wait for, asleep: a thread that spins takes a core from those that decode."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward failed for lack of memory, on the host or on a device."""
    text = str(error).lower()  # not all libraries have a class for it
    told = ("allocate memory", "out of memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in told)


def is_device_lost(error: BaseException) -> bool:
    """Whether the GPU's context has failed, after which nothing in this process can use it (Xid, ECC, assertions)."""
    return "CUDA error" in str(error) and not is_out_of_memory(error)


class DeviceThread:
    """Runs functions one after the other on a thread of its own, with a set number of threads per forward.

    Dask's nannies set OMP_NUM_THREADS=1 in workers, which would make inference single-threaded in silence;
    PyTorch's own setting, made on the thread that computes, wins over it.
    """

    def __init__(self, *, threads: int) -> None:
        self._pool = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="device", initializer=torch.set_num_threads, initargs=(threads,)
        )

    def run(self, function: Callable[[], _T]) -> _T:
        """Result of `function`, computed on the device thread."""
        return self._pool.submit(function).result()

    def start(self, function: Callable[[], object]) -> None:
        """Begin `function` on the device thread; a failure shows when what it was to prepare is used."""
        self._pool.submit(function)

    def close(self) -> None:
        """Wait for the running function and end the thread."""
        self._pool.shutdown(wait=True)


_threads: dict[int, DeviceThread] = {}
_guard = threading.Lock()


def device_thread(*, threads: int) -> DeviceThread:
    """The process's device thread for this number of threads per forward."""
    with _guard:
        if threads not in _threads:
            _threads[threads] = DeviceThread(threads=threads)
        return _threads[threads]
