"""A scheduler with certificates: used with the right ones, and not otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import pipeline as sm
from pipeline.errors import InfrastructureError, UsageError
from pipeline.run.cluster import connect
from pipeline.run.settings import make_settings
from tests.cluster.running import (
    Known,
    address_file,
    await_lines,
    dask,
    free_port,
    make_certificates,
    process,
    tls,
)
from tests.scenes import sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A real scheduler and a real worker that talk TLS, by certificates in `folder / "ours"`."""
    ours = tls(make_certificates(folder / "ours"))
    where, host = f"tls://127.0.0.1:{free_port()}", ["--host", "127.0.0.1"]
    scheduler, worker = folder / "scheduler.log", folder / "worker.log"
    with (
        process(dask("scheduler", "--port", where.rpartition(":")[2], *host, *ours), scheduler),
        process(dask("worker", where, "--nthreads", "2", *host, *ours), worker),
    ):
        await_lines(scheduler, "Register worker")
        yield where


def test_t9_a_tls_scheduler_gives_the_same_bytes(address: str, folder: Path, known: Known, tmp_path: Path) -> None:
    cluster = address_file(tmp_path / "c.yaml", address, folder / "ours", cores=2)
    made = sm.segment(known.scene, known.model, tmp_path / "out", cluster=cluster, **known.options)
    assert sha256(made.mask_path) == known.sha256
    assert not list((tmp_path / "out").glob(".*")), "nothing of the checks is left"


def test_t9_certificates_of_others_do_not_connect(address: str, tmp_path: Path) -> None:
    theirs = make_certificates(tmp_path / "theirs")
    cluster = address_file(tmp_path / "c.yaml", address, theirs, connect_timeout="2 s")
    with pytest.raises(InfrastructureError, match="CL-001") as caught, connect(make_settings({"cluster": cluster})):
        pass
    assert "certificates" in caught.value.fix


def test_t9_tls_without_certificates_is_refused_in_words(address: str) -> None:
    with pytest.raises(UsageError, match=r"CF-042.*ca, cert and key"), connect(make_settings({"cluster": address})):
        pass
