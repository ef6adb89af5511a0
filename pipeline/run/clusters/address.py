"""A scheduler that runs already: connected to, and left running."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

from distributed import Client, Security
from distributed.versions import VersionMismatchWarning

from pipeline.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from distributed import SpecCluster

    from pipeline.run.clusters.options import AddressOptions


def connected(options: AddressOptions) -> Client:
    """A client of a running scheduler.

    Raises:
        UsageError: CF-042, `tls://` without files.
        InfrastructureError: CL-001 when the scheduler cannot be reached, CL-002 when it has no workers.
    """
    security = _security(options)
    try:
        client = client_of(options.address, timeout_s=options.connect_timeout, security=security)
    except (OSError, TimeoutError, ValueError, RuntimeError) as error:
        raise InfrastructureError(
            f"no Dask scheduler answers at {options.address}",
            code="CL-001",
            title="Scheduler cannot be reached",
            where=f"--cluster {options.address}",
            fix="start one with `dask scheduler --host 127.0.0.1`, use --cluster local, or with tls:// compare the "
            "certificates of both sides",
        ) from error
    if not client.nthreads():
        client.close()
        raise InfrastructureError(
            f"the scheduler at {options.address} has no workers",
            code="CL-002",
            title="Cluster has no workers",
            where=f"--cluster {options.address}",
            fix=f"start one with `dask worker {options.address}` in an environment that has scenemask",
        )
    return client


def client_of(target: str | SpecCluster, *, timeout_s: int, security: Security | None) -> Client:
    """A client that keeps quiet about versions: `require_workers` compares them, and more of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)
        return _Client(target, timeout=f"{timeout_s}s", security=security, set_as_default=False)


class _Client(Client):  # type: ignore[misc]  # Dask's classes have no types
    """One whose closing hides no failure: Dask closes it too, and stumbles over that, where its scheduler is gone."""

    def close(self, *args: Any, **options: Any) -> None:
        """Close it as well as that can be done."""
        with contextlib.suppress(OSError, TimeoutError, RuntimeError, AssertionError):
            super().close(*args, **options)


def _security(options: AddressOptions) -> Security | None:
    """None without TLS; files that were not given are those of Dask's own settings."""
    if not options.address.startswith("tls://"):
        return None
    files: dict[str, Any] = {"tls_ca_file": options.ca, "tls_client_cert": options.cert, "tls_client_key": options.key}
    security = Security(
        require_encryption=True, **{name: str(path) for name, path in files.items() if path is not None}
    )
    if not (security.tls_ca_file and security.tls_client_cert):
        raise UsageError(
            f"{options.address} needs the files ca, cert and key, and there are none",
            code="CF-042",
            title="TLS files are missing",
            where=f"--cluster {options.address}",
            fix="name them in a file such as configs/cluster/address.yaml, or in Dask's settings "
            "(distributed.comm.tls)",
        )
    return security
