"""Dask clusters: in this process, processes of this machine, or a scheduler that runs already. Loopback only."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client, LocalCluster

from pipeline.errors import InfrastructureError
from pipeline.run.plan import TILES_IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.run.settings import SegmentSettings

_LOOPBACK = "127.0.0.1:0"
_CONFIG: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 1,  # a tile that kills two workers is the tile's fault
    "distributed.scheduler.work-stealing": False,  # a tile's data is its own; moving it saves nothing
    "distributed.worker.daemon": True,
    "distributed.worker.memory.target": False,  # results are a few numbers: nothing to spill
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.logging.distributed": "error",
}


@dataclass(frozen=True, slots=True)
class Connection:
    """A client and how many tiles it can keep busy."""

    client: Client
    slots: int


@contextlib.contextmanager
def connect(settings: SegmentSettings) -> Iterator[Connection]:
    """A Dask client for the duration of a run.

    `local` with one worker runs in this process; with more, each is a process. All of it, dashboards included,
    listens on loopback. An address is connected to and left running.

    Raises:
        InfrastructureError: CL-001 when the scheduler cannot be reached, CL-002 when it has no workers.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_CONFIG))
        if settings.cluster == "local":
            cluster = stack.enter_context(_local(settings.workers))
            client = stack.enter_context(Client(cluster, set_as_default=False))
        else:
            client = stack.enter_context(_remote(settings.cluster))
        threads = sum(client.nthreads().values())
        yield Connection(client, threads)


def _local(workers: int) -> LocalCluster:
    common: dict[str, Any] = {
        "n_workers": workers,
        "threads_per_worker": TILES_IN_FLIGHT,
        "dashboard_address": _LOOPBACK,
        "worker_dashboard_address": _LOOPBACK,
        "silence_logs": 50,
    }
    if workers == 1:
        return LocalCluster(processes=False, **common)
    # Never fork: GDAL and PyTorch have threads by now. Dask's nannies spawn; a script without a main guard would
    # start itself again in each, which is why the guard is in the documentation.
    return LocalCluster(processes=True, host="127.0.0.1", **common)


def _remote(address: str) -> Client:
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InfrastructureError(
            f"no Dask scheduler answers at {address}",
            code="CL-001",
            title="Scheduler cannot be reached",
            where=f"--cluster {address}",
            fix="start one with `dask scheduler --host 127.0.0.1`, or use --cluster local",
        ) from error
    if not client.nthreads():
        client.close()
        raise InfrastructureError(
            f"the scheduler at {address} has no workers",
            code="CL-002",
            title="Cluster has no workers",
            where=f"--cluster {address}",
            fix=f"start one with `dask worker {address}` in an environment that has scenemask",
        )
    return client
