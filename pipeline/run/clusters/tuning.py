"""Dask's own settings, for scheduler, workers and client alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension

from pipeline.run.clusters.options import Patience, StartedOptions

if TYPE_CHECKING:
    from pydantic import BaseModel

HEALTH_ONLY = ["distributed.http.health"]
"""All that web servers of schedulers and workers tell: other pages show tasks and addresses, dashboard or not."""

_ALWAYS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 1,  # a tile that kills two workers is the tile's fault
    "distributed.scheduler.work-stealing": False,  # a tile's data is its own; moving it saves nothing
    "distributed.worker.daemon": True,
    "distributed.worker.multiprocessing-method": "spawn",  # GDAL and PyTorch have threads, which a fork would lose
    "distributed.worker.memory.target": False,  # results are a few numbers: nothing to spill
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.tick.interval": "1s",  # how late the loops are is measured this often, not fifty times a second
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.profile.enabled": False,  # it looks at every thread a hundred times a second
    "distributed.scheduler.http.routes": HEALTH_ONLY,
    "distributed.worker.http.routes": HEALTH_ONLY,
    "distributed.logging.distributed": "error",
}


def tuning(options: BaseModel) -> dict[str, Any]:
    """Settings for a kind of cluster, as `dask.config.set` takes them."""
    settings = dict(_ALWAYS)
    if isinstance(options, Patience):
        settings["distributed.comm.timeouts.connect"] = f"{options.connect_timeout}s"
        settings["distributed.comm.timeouts.tcp"] = f"{options.tcp_timeout}s"
    if isinstance(options, StartedOptions):
        settings["distributed.scheduler.worker-ttl"] = f"{options.worker_ttl}s"
        settings["distributed.deploy.lost-worker-timeout"] = "5s"
    return settings


class _ForgetfulSpans(SpansSchedulerExtension):  # type: ignore[misc]
    """Dask would note for its dashboard, of every task ever sent, that it was sent."""

    def observe_tasks(self, *args: Any, **more: Any) -> Any:
        return super().observe_tasks(*args, **{**more, "span_metadata": {}})


def scheduler_options() -> dict[str, Any]:
    """Of schedulers that are started here: memory that does not grow with tasks, and no dashboard.

    Importing dashboards takes half a second.
    """
    extensions = {**DEFAULT_EXTENSIONS, "spans": _ForgetfulSpans}
    del extensions["stealing"]  # whoever names extensions names them all, whatever the settings say
    return {"dashboard": False, "dashboard_address": "127.0.0.1:0", "extensions": extensions}


def inherited(settings: dict[str, Any]) -> dict[str, str]:
    """The same as a variable of the environment, for processes that start elsewhere; in base64."""
    nested: dict[str, Any] = {}
    dask.config.set(settings, config=nested)
    return {"DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(nested)}
