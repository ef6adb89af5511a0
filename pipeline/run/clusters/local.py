"""Workers of this machine: in the process of the command, or processes of their own. Loopback only."""

from __future__ import annotations

import contextlib
import logging
import signal
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from distributed import Nanny, Scheduler, SpecCluster, Worker

from pipeline.errors import InfrastructureError
from pipeline.run.clusters.tuning import scheduler_options
from pipeline.run.workers import environment_of, num_workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.run.settings import SegmentSettings

_LOOPBACK = "127.0.0.1:0"
_STARTS = 3


def in_process(threads: int) -> SpecCluster:
    """Scheduler and worker in this process."""
    common = {"protocol": "inproc://", "dashboard": False, "dashboard_address": _LOOPBACK}
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": {**common, **scheduler_options()}},
        workers={0: {"cls": Worker, "options": {**common, "nthreads": threads}}},
        silence_logs=50,
    )


def processes(settings: SegmentSettings, threads: int, device: str) -> SpecCluster:
    """Scheduler in this process, workers in processes, each with a nanny that replaces it when it dies.

    Raises:
        InfrastructureError: CL-018, they die while they start.
    """
    # Never fork: GDAL and PyTorch have threads by now. Dask's nannies spawn; a script without a main guard would
    # start itself again in each, which is why the guard is in the documentation.
    common = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": _LOOPBACK}

    def worker(number: int) -> dict[str, Any]:
        # No limit: what a worker may take is the plan's business.
        mine = {"nthreads": threads, "memory_limit": 0, "env": environment_of(number, device)}
        # Processes read Dask's settings of its log before ours reach them. What went wrong in a tile or at the start
        # comes back as an exception; the log has only what is said at the end: a heartbeat that nobody hears any more.
        return {"cls": Nanny, "options": {**common, **mine, "silence_logs": logging.CRITICAL}}

    for left in reversed(range(_STARTS)):
        try:
            with _deaf_children():
                return SpecCluster(
                    scheduler={"cls": Scheduler, "options": {**common, **scheduler_options(), "port": 0}},
                    workers={number: worker(number) for number in range(num_workers(settings))},
                    silence_logs=50,
                )
        except (RuntimeError, OSError, TimeoutError) as error:  # a nanny replaces a worker only once it has started
            if not left:
                raise _not_started(error) from error
    raise AssertionError


def _not_started(error: Exception) -> InfrastructureError:
    return InfrastructureError(
        f"worker processes die while they start, {_STARTS} times in a row ({type(error).__name__}: {error})",
        code="CL-018",
        title="Workers do not start",
        where="--workers",
        fix="look for memory (`free -h`, the kernel's log) and for limits on processes (`ulimit -u`); a script that "
        'calls this needs `if __name__ == "__main__":`; --workers 1 starts none',
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
