"""Jobs of a real SLURM, on two nodes of this machine."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import pipeline as sm
from pipeline.errors import InfrastructureError, UsageError
from pipeline.run.cluster import connect
from pipeline.run.clusters.jobqueue import _job, _walltime
from pipeline.run.clusters.options import make_options
from pipeline.run.events import Event, StageAdvanced
from pipeline.run.settings import make_settings
from tests.cluster.running import Known
from tests.scenes import sha256

if TYPE_CHECKING:
    pass


def _jobs(what: str) -> list[str]:
    done = subprocess.run(["squeue", "-h", "-o", what], check=True, capture_output=True, text=True)
    return done.stdout.split()


def _await_no_jobs() -> None:
    deadline = time.monotonic() + 30
    while _jobs("%i"):
        assert time.monotonic() < deadline, "jobs outlive their run"
        time.sleep(0.1)


def _file(folder: Path, **options: object) -> str:
    path = folder / "slurm.yaml"
    given = {"kind": "slurm", "workers": 2, "cores": 2, "memory": "2GB", "walltime": "00:20:00", "interface": "lo"}
    path.write_text("\n".join(f"{name}: {value}" for name, value in {**given, **options}.items()))
    return str(path)


class Watcher:
    """Looks at the run while it goes on, and cancels a job once."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.nodes: set[str] = set()
        self.cancelled: str | None = None
        self.jobs: set[str] = set()
        self.listening: list[str] = []
        self.keys: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        if not isinstance(event, StageAdvanced) or event.name != "infer" or event.done % 10:
            return
        self.jobs |= set(_jobs("%i"))
        self.nodes |= set(_jobs("%N"))
        if self.cancelled is None and len(self.nodes) == 2 and event.done >= 40:
            self.listening = _listening()
            keys = self.out / ".scenemask" / "cluster" / "keys"
            self.keys = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (keys, *keys.iterdir())}
            self.cancelled = _jobs("%i")[0]
            subprocess.run(["scancel", self.cancelled], check=True)


def _listening() -> list[str]:
    """Addresses on which this process and Dask's workers, wherever they were started, take connections."""
    found = [psutil.Process()]
    for process in psutil.process_iter(["cmdline"]):
        if "distributed.cli.dask_worker" in (process.info["cmdline"] or []) and ".scenemask" in str(process.info):
            found += [process, *process.children(recursive=True)]
    assert len(found) >= 5, "two jobs, each a nanny and a worker"
    return [c.laddr.ip for p in found for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]


def test_a_run_on_two_nodes_loses_a_job_and_no_pixel(slurm: Path, known: Known, tmp_path: Path) -> None:
    watch = Watcher(tmp_path / "out")
    made = sm.segment(
        known.scene, known.model, tmp_path / "out", cluster=_file(tmp_path), listener=watch, **known.options
    )
    assert sha256(made.mask_path) == known.sha256
    assert watch.nodes == {"n0", "n1"}
    assert watch.cancelled is not None
    assert watch.keys == {"keys": 0o700, "ca.pem": 0o600, "cert.pem": 0o600, "key.pem": 0o600}
    assert watch.listening
    assert all(re.match(r"127\.|::1$", ip) for ip in watch.listening), watch.listening
    assert not (tmp_path / "out" / ".scenemask").exists()
    _await_no_jobs()


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["cancelled", "out of time"])
def test_a_lost_job_is_replaced(slurm: Path, tmp_path: Path, ends: str) -> None:
    brief = {"walltime": "2 min", "lifetime_margin": "100 s", "lifetime_stagger": "2 s"}
    settings = make_settings({"cluster": _file(tmp_path, workers=1, **(brief if ends == "out of time" else {}))})
    with connect(settings, keys=tmp_path) as connection:
        assert connection.client.scheduler.address.startswith("tls://127.0.0.1:")
        first = _jobs("%i")
        if ends == "cancelled":
            subprocess.run(["scancel", *first], check=True)
        deadline = time.monotonic() + 60
        while set(_jobs("%i")) <= set(first):
            assert time.monotonic() < deadline, "no other job came"
            time.sleep(0.2)
        assert connection.client.submit(_where).result(timeout=60) == os.uname().nodename
    _await_no_jobs()
    assert not (tmp_path / "cluster").exists()


def _where() -> str:
    return os.uname().nodename


def test_what_slurm_refuses_is_told_in_its_words(slurm: Path, tmp_path: Path) -> None:
    settings = make_settings({"cluster": _file(tmp_path, queue="nope")})
    with (
        pytest.raises(
            InfrastructureError, match=r"CL-010.*slurm does not take the job: .*[Ii]nvalid partition"
        ) as caught,
        connect(settings, keys=tmp_path),
    ):
        pass
    assert "queue" in caught.value.fix
    assert not (tmp_path / "cluster" / "keys").exists()


def test_a_queue_that_is_too_long_is_told(slurm: Path, tmp_path: Path) -> None:
    settings = make_settings({"cluster": _file(tmp_path, wait="2 s", directives='["--begin=now+1hour"]')})
    with pytest.raises(InfrastructureError, match=r"CL-011.*within 2 s"), connect(settings, keys=tmp_path):
        pass
    _await_no_jobs()


def test_an_interface_that_is_not_there(tmp_path: Path) -> None:
    settings = make_settings({"cluster": _file(tmp_path, interface="ib7")})
    with pytest.raises(UsageError, match=r"CF-045.*ib7"), connect(settings, keys=tmp_path):
        pass


@pytest.mark.parametrize(("kind", "walltime"), [("slurm", "30:05:00"), ("pbs", "30:05:00"), ("lsf", "30:05")])
def test_other_batch_systems_take_the_same_options(kind: str, walltime: str, tmp_path: Path) -> None:
    """Each class of dask-jobqueue accepts them, and asks for what was meant."""
    import dask_jobqueue

    options = make_options(
        {"kind": kind, "cores": 7, "memory": "8GB", "walltime": "30:05:00", "queue": "long", "account": "ab1"},
        where="test",
    )
    assert _walltime(options) == walltime
    base = {"slurm": dask_jobqueue.SLURMCluster, "pbs": dask_jobqueue.PBSCluster, "lsf": dask_jobqueue.LSFCluster}[kind]
    job = base.job_cls(
        "tls://10.0.0.1:1",
        name="x",
        **_job(options, threads=3, logs=tmp_path),
        **({"lsf_units": "mb"} if kind == "lsf" else {}),
    )
    script = job.job_script()
    assert "long" in script
    assert "ab1" in script
    assert walltime in script
    cores = {"slurm": "--cpus-per-task=7", "pbs": "ncpus=7", "lsf": "-n 7"}[kind]
    assert cores in script
    assert script.count("--nthreads 7 ") == 1
    assert script.index("--nthreads 7 ") < script.index("--nthreads 3 ")  # the last one counts
    assert f"--lifetime {30 * 3600 + 300 - 300 - 120}s" in script
    assert "--memory-limit 0" in script
