"""The one way to a Dask cluster: workers found or started, asked whether they can do the work."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import dask

from pipeline.run.clusters.address import client_of, connected
from pipeline.run.clusters.jobqueue import job_workers
from pipeline.run.clusters.kubernetes import pod_workers
from pipeline.run.clusters.latecomers import Door
from pipeline.run.clusters.local import in_process, processes
from pipeline.run.clusters.options import (
    AddressOptions,
    JobQueueOptions,
    KubernetesOptions,
    LocalOptions,
    cluster_options,
)
from pipeline.run.clusters.tuning import tuning
from pipeline.run.workers import on_this_machine, tiles_in_flight, workers_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from distributed import Client, Future

    from pipeline.model import EngineSpec
    from pipeline.run.settings import SegmentSettings
    from pipeline.store import Place


@dataclass(frozen=True, slots=True)
class Connection:
    """A client and how many tiles it can keep busy."""

    client: Client
    slots: int
    in_process: bool = False
    """Whether tiles run in this process, so that nothing travels and no worker can die alone."""
    door: Door | None = None
    """Who is let in, of workers on other hosts; None where all of them share this machine."""

    def share(self, value: object) -> Future:
        """A future of `value` that every worker can have, also after any of them died.

        Scattered data would be lost with the last worker that holds it (a scheduler that is not ours may keep one
        copy only). What a task returns is made again from the scheduler's own copy.
        """
        if self.in_process:
            return cast("Future", self.client.scatter(value, hash=False))
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):  # weights are large
            return self.client.submit(_itself, value, pure=False, **self.asked_first())

    def asked_first(self) -> dict[str, Any]:
        """Arguments of `submit` for what is to run on a worker that was asked, if there is any."""
        known = frozenset() if self.door is None else self.door.known
        return {"workers": sorted(known), "allow_other_workers": True} if known else {}


def _itself(value: object) -> object:
    return value


def _never() -> None:
    """Nobody asks to stop."""


@contextlib.contextmanager
def connect(
    settings: SegmentSettings,
    *,
    device: str = "cpu",
    engine: EngineSpec | None = None,
    keys: Path | None = None,
    seen: Sequence[Place] = (),
    check_stop: Callable[[], None] = _never,
) -> Iterator[Connection]:
    """A Dask client for the duration of a run.

    `local` with one worker runs in this process; with more, each is a process. All of it listens on loopback. What is
    started on other hosts talks TLS and ends with the run; an address is connected to and left running.

    Args:
        settings: Which cluster, how many workers.
        device: `cpu` or `cuda`: what the workers compute on.
        engine: What they must be able to run; not asked for if not given.
        keys: Folder for the keys of workers that a batch system starts, seen by all hosts; the current one without.
        seen: What workers must see, as this process does.
        check_stop: Called while the first worker is waited for; may raise.

    Raises:
        InfrastructureError: CL-001 and CL-002, CL-010, CL-011, CL-017: there are no workers.
        UsageError: CL-012 to CL-015, workers cannot do the work; CF-042, CF-044, CF-045.
    """
    options = cluster_options(settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(tuning(options)))
        threads = tiles_in_flight(settings, device)
        here = isinstance(options, LocalOptions) and workers_wanted(settings) == 1
        least = 0
        if isinstance(options, AddressOptions):
            client = stack.enter_context(connected(options))
        elif isinstance(options, JobQueueOptions):
            client = stack.enter_context(
                job_workers(options, settings, device=device, folder=keys, check_stop=check_stop)
            )
            least = threads * workers_wanted(settings)
        elif isinstance(options, KubernetesOptions):
            client = stack.enter_context(pod_workers(options, settings, device=device, check_stop=check_stop))
            least = threads * workers_wanted(settings)
        else:
            cluster = stack.enter_context(in_process(threads) if here else processes(settings, threads, device))
            client = stack.enter_context(client_of(cluster, timeout_s=30, security=None))
        door = None if on_this_machine(settings) else Door(client, allow_skew=settings.allow_version_skew)
        connection = Connection(client, max(least, sum(client.nthreads().values())), in_process=here, door=door)
        admit(connection, engine=engine, seen=seen)
        yield connection


def admit(connection: Connection, *, engine: EngineSpec | None = None, seen: Sequence[Place] = ()) -> None:
    """Ask workers on other hosts whether they can do the work.

    Args:
        connection: To them.
        engine: What they must be able to run; not asked for if not given.
        seen: What they must see, as this process does.

    Raises:
        UsageError: CL-012 to CL-015.
    """
    if connection.door is not None:
        connection.door.require(engine=engine, places=seen)
