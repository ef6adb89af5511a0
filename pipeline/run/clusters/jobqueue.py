"""Workers as jobs of SLURM, PBS, LSF or SGE, through dask-jobqueue: one worker per job, lost ones replaced."""

from __future__ import annotations

import contextlib
import importlib
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.core import Status
from distributed.utils import get_ip, get_ip_interface

from pipeline.errors import InfrastructureError, UsageError
from pipeline.run.clusters.address import client_of
from pipeline.run.clusters.keys import temporary_files
from pipeline.run.clusters.tuning import inherited, scheduler_options, tuning
from pipeline.run.workers import tiles_in_flight, workers_wanted
from pipeline.store import private_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

    from pipeline.run.clusters.options import JobQueueOptions
    from pipeline.run.settings import SegmentSettings

PLACE = "cluster"
"""Folder in the run's private one for keys and the jobs' output."""
_CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}


@contextlib.contextmanager
def job_workers(
    options: JobQueueOptions,
    settings: SegmentSettings,
    *,
    device: str,
    folder: Path | None,
    check_stop: Callable[[], None],
) -> Iterator[Client]:
    """A client of a scheduler in this process whose workers are jobs; returns when the first worker is there.

    Scheduler and workers talk TLS, with keys made for this run that lie in `folder`, readable by their owner only.

    Args:
        options: Of the jobs.
        settings: Of the run.
        device: What the workers compute on.
        folder: Seen by all hosts; the current one if not given.
        check_stop: Called while waiting.

    Raises:
        UsageError: CF-044 dask-jobqueue is missing; CF-045 no such network interface.
        InfrastructureError: CL-010 the batch system refuses a job; CL-011 no worker came in time.
    """
    kind = _cluster_class(options)
    refusals: list[str] = []
    threads = tiles_in_flight(settings, device)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(_place(folder))
        logs = options.log_directory or place / "logs"
        security = temporary_files(private_folder(place / "keys"))
        cluster = stack.enter_context(
            kind(
                job_cls=_telling(kind.job_cls, refusals),
                security=security,
                scheduler_options={"host": _host(options), **scheduler_options()},
                silence_logs="error",
                **_job(options, threads=threads, logs=logs),
            )
        )
        least = workers_wanted(settings)
        cluster.adapt(minimum=least, maximum=max(least, options.most_workers or 0), interval="2s")
        client = stack.enter_context(client_of(cluster, timeout_s=options.connect_timeout, security=security))
        _wait_for_first(client, options, refusals, check_stop, logs=logs)
        yield client


def _cluster_class(options: JobQueueOptions) -> Any:
    try:
        importlib.import_module("cryptography")
        return getattr(importlib.import_module("dask_jobqueue"), _CLASSES[options.kind])
    except ImportError as error:
        raise UsageError(
            f"--cluster {options.kind} needs the package {error.name}, which is not installed",
            code="CF-044",
            title="Extra is missing",
            fix='pip install "scenemask[slurm]"',
        ) from error


def _telling(base: Any, refusals: list[str]) -> Any:
    """A kind of job that notes why it could not be submitted: Dask's loop would only log it."""

    class Job(base):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as error:
                refusals.append(" ".join(str(error).rpartition("stderr:")[2].split()))
                self.status = Status.failed  # or closing the cluster fails on it
                raise

    return Job


@contextlib.contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """A private folder that all hosts see. Keys go with the workers, the jobs' output unless the run failed."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=".scenemask-", dir=Path.cwd(), ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    place = folder / PLACE
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    private_folder(place)
    try:
        yield place
    finally:
        shutil.rmtree(place / "keys", ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)


def _host(options: JobQueueOptions) -> str:
    """Address on which the scheduler listens: one, not all of them."""
    if options.interface is None:
        return str(get_ip())
    try:
        return str(get_ip_interface(options.interface))
    except ValueError as error:
        raise UsageError(
            str(error),
            code="CF-045",
            title="No such network interface",
            where=f"interface: {options.interface}",
            fix="give one that all hosts have, or leave `interface` out",
        ) from error


def _job(options: JobQueueOptions, *, threads: int, logs: Path) -> dict[str, Any]:
    """Arguments of dask-jobqueue that describe one job."""
    lifetime = options.walltime - options.lifetime_margin - options.lifetime_stagger
    arguments = [
        "--nthreads", str(threads),  # of both, the last is taken: cores are asked for, tiles in flight are threads
        "--memory-limit", "0",  # the batch system sees to it
        "--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{options.lifetime_stagger}s",
        "--no-dashboard", "--dashboard-address", "127.0.0.1:0",
    ]  # fmt: skip
    settings = [f"export {name}={shlex.quote(value)}" for name, value in inherited(tuning(options)).items()]
    job = {
        "cores": options.cores,
        "processes": 1,
        "memory": f"{options.memory}B",
        "walltime": _walltime(options),
        "queue": options.queue,
        "interface": options.interface,
        "death_timeout": max(60, options.connect_timeout),
        "local_directory": options.local_directory,
        "worker_extra_args": arguments,
        "job_extra_directives": list(options.directives),
        "job_script_prologue": [*options.prologue, *settings],
        "log_directory": str(logs),
        "python": options.python,
        "job_name": "scenemask",
    }
    return job | {"account" if options.kind in {"slurm", "pbs"} else "project": options.account}


def _walltime(options: JobQueueOptions) -> str:
    minutes, seconds = divmod(options.walltime, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}" + ("" if options.kind == "lsf" else f":{seconds:02d}")


def _wait_for_first(
    client: Client, options: JobQueueOptions, refusals: list[str], check_stop: Callable[[], None], *, logs: Path
) -> None:
    deadline = time.monotonic() + options.wait
    while not client.nthreads():
        check_stop()
        if refusals:
            raise InfrastructureError(
                f"{options.kind} does not take the job: {refusals[0]}",
                code="CL-010",
                title="Jobs cannot be submitted",
                where=f"--cluster {options.kind}",
                fix="correct queue, account, walltime, memory or directives in the cluster's file",
            )
        if time.monotonic() > deadline:
            raise InfrastructureError(
                f"no worker came within {options.wait} s",
                code="CL-011",
                title="No worker came",
                where=f"--cluster {options.kind}; output of the jobs: {logs}",
                fix="look at the queue and at the jobs' output; raise `wait` in the cluster's file if queues are long",
            )
        time.sleep(_LOOK_S)


_LOOK_S = 0.2
