"""A client of a cluster: its end must not hide why the run ended."""

from __future__ import annotations

from typing import Any

import pytest
from distributed import Client, LocalCluster

from pipeline.run.clusters.address import client_of


def test_a_client_that_dask_closes_at_the_same_time_hides_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    close = Client.close

    def racing(client: Client, *args: Any, **options: Any) -> None:
        close(client, *args, **options)
        raise RuntimeError("Cannot change state of expiring Timeout")  # as Dask's own, when it lost the scheduler

    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        client = client_of(cluster, timeout_s=10, security=None)
        monkeypatch.setattr(Client, "close", racing)
        with pytest.raises(KeyError), client:
            raise KeyError("cluster lost")
    assert client.status == "closed"
