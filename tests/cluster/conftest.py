"""What cluster tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cluster.running import ROOT, Known, await_lines, dask, free_port, make_known, process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return make_known(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and log of a scheduler without workers."""
    address, log = f"tcp://127.0.0.1:{free_port()}", tmp_path_factory.mktemp("scheduler") / "log"
    with process(dask("scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]), log):
        await_lines(log, "Scheduler at")
        yield address, log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log"


SCRIPT = ROOT / "tests" / "infra" / "slurm_local.sh"
TELLS = ("slurmctld", "slurmd", "munged", "sbatch")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its configuration; SLURM's commands find it by the environment."""
    missing = [name for name in TELLS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid():
        pytest.skip(f"needs root and SLURM (apt install slurm-wlm munge): {', '.join(missing) or 'not root'}")
    state = tmp_path_factory.mktemp("slurm")
    # Each process of the tests has a SLURM of its own.
    number = 40 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = {"SLURM_CTLD_PORT": str(17817 + number), "SLURM_D_PORT0": str(17830 + number)}
    subprocess.run(["bash", SCRIPT, "start", state], check=True, env={**os.environ, **ports})
    variables = {"SLURM_CONF": str(state / "slurm.conf"), "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield state
        subprocess.run(["bash", SCRIPT, "stop", state], check=True)
