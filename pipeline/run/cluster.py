"""Dask clusters: in this process, processes of this machine, or a scheduler that runs already. Loopback only."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, cast

import dask
from distributed import Client, Future, Nanny, Scheduler, SpecCluster, Worker

from pipeline.errors import InfrastructureError
from pipeline.run.settings import OWN_CLUSTERS
from pipeline.run.workers import environment_of, num_workers, tiles_in_flight

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
    "distributed.admin.tick.interval": "1s",  # how late the loops are is measured this often, not fifty times a second
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.profile.enabled": False,  # it looks at every thread a hundred times a second
    "distributed.logging.distributed": "error",
}


@dataclass(frozen=True, slots=True)
class Connection:
    """A client and how many tiles it can keep busy."""

    client: Client
    slots: int
    in_process: bool = False
    """Whether tiles run in this process, so that nothing travels and no worker can die alone."""

    def share(self, value: object) -> Future:
        """A future of `value` that every worker can have, also after any of them died.

        Scattered data would be lost with the last worker that holds it (a scheduler that is not ours may keep one
        copy only). What a task returns is made again from the scheduler's own copy.
        """
        if self.in_process:
            return cast("Future", self.client.scatter(value, hash=False))
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):  # weights are large
            return self.client.submit(_itself, value, pure=False)


def _itself(value: object) -> object:
    return value


@contextlib.contextmanager
def connect(settings: SegmentSettings, *, device: str = "cpu") -> Iterator[Connection]:
    """A Dask client for the duration of a run.

    `local` with one worker runs in this process; with more, each is a process. All of it listens on loopback. An
    address is connected to and left running.

    Args:
        settings: Which cluster, how many workers.
        device: `cpu` or `cuda`: what the workers compute on.

    Raises:
        InfrastructureError: CL-001 when the scheduler cannot be reached, CL-002 when it has no workers.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_CONFIG))
        here = settings.cluster == "local" and settings.workers == 1
        if settings.cluster in OWN_CLUSTERS:
            threads = tiles_in_flight(settings, device)
            cluster = stack.enter_context(_in_process(threads) if here else _processes(settings, threads, device))
            client = stack.enter_context(Client(cluster, set_as_default=False))
        else:
            client = stack.enter_context(_remote(settings.cluster))
        yield Connection(client, sum(client.nthreads().values()), in_process=here)


def _in_process(threads: int) -> SpecCluster:
    """Scheduler and worker in this process, without dashboards: importing them takes half a second."""
    common = {"protocol": "inproc://", "dashboard": False, "dashboard_address": _LOOPBACK}
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": common},
        workers={0: {"cls": Worker, "options": {**common, "nthreads": threads}}},
        silence_logs=50,
    )


def _processes(settings: SegmentSettings, threads: int, device: str) -> SpecCluster:
    # Never fork: GDAL and PyTorch have threads by now. Dask's nannies spawn; a script without a main guard would
    # start itself again in each, which is why the guard is in the documentation.
    common = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": _LOOPBACK}

    def worker(number: int) -> dict[str, Any]:
        # No limit: what a worker may take is the plan's business.
        mine = {"nthreads": threads, "memory_limit": 0, "env": environment_of(number, device)}
        return {"cls": Nanny, "options": {**common, **mine}}

    with _deaf_children():
        return SpecCluster(
            scheduler={"cls": Scheduler, "options": {**common, "port": 0}},
            workers={number: worker(number) for number in range(num_workers(settings))},
            silence_logs=50,
        )


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started by threads that are started here do not hear Ctrl-C: it ends the run, not its workers' tiles.

    A terminal sends SIGINT to the whole process group. A blocked signal stays blocked in a thread's threads and in its
    processes from their first instruction on; a handler would be set too late, after seconds of imports. In this
    process the signal goes to another thread, or waits until the end of the block.
    """
    resource_tracker.ensure_running()  # starting it later would unblock the signal in that thread
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
