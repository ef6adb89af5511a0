"""What went wrong on a worker, as one of our own errors that names the place."""

from __future__ import annotations

from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from pipeline.errors import InfrastructureError, PipelineError, ResourceError
from pipeline.infer import is_device_lost, is_out_of_memory


def is_cluster_lost(error: BaseException) -> bool:
    """Whether there is no scheduler any more, so that no task can end well."""
    if isinstance(error, PipelineError):
        return False
    return isinstance(error, ConnectionError | TimeoutError | CommClosedError) or "Cancelled" in type(error).__name__


def as_failure(error: BaseException, *, where: str) -> PipelineError:
    """One of ours, whatever it was, and where.

    Raises:
        BaseException: `error` itself, with `where` as a note, where nobody foresaw it.
    """
    if isinstance(error, PipelineError):
        error.where = f"{error.where}; {where}" if error.where else where
        return error
    if isinstance(error, KilledWorker):
        failure: PipelineError = ResourceError(
            "the worker process died twice of the same task, most likely for lack of memory or by its GPU",
            code="RS-003",
            title="Worker died",
            where=where,
            fix="give less --memory (smaller patches) or fewer --workers",
        )
    elif is_out_of_memory(error):
        failure = ResourceError(
            f"out of memory during a forward pass ({(str(error) or type(error).__name__).splitlines()[0]})",
            code="RS-003",
            title="Out of memory",
            where=where,
            fix="give less --memory or a smaller --patch",
        )
    elif is_device_lost(error):
        failure = ResourceError(
            f"the GPU was lost during a forward pass ({str(error).splitlines()[0]})",
            code="RS-005",
            title="GPU was lost",
            where=where,
            fix="run the same command again, finished tiles are kept; if it repeats, look at nvidia-smi and the kernel "
            "log, or use --device cpu",
        )
    elif is_cluster_lost(error):
        failure = InfrastructureError(
            f"the cluster was lost ({type(error).__name__})",
            code="CL-003",
            title="Cluster lost",
            where=where,
            fix="start it again and run the same command: finished tiles are kept",
        )
    else:
        error.add_note(where)
        raise error
    failure.__cause__ = error
    return failure
