"""Cores that a process may use, under control groups as they are found in containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.control_groups import memory_left
from pipeline.cores import available_cores, cpu_quota
from tests.unit.deploy.deployment import ROOT


def _group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("mine", "where", "files", "cores"),
    [
        ("0::/", "", {"cpu__max": "400000 100000"}, 4),  # a container with a namespace of its own
        ("0::/a/b", "a", {"cpu__max": "150000 100000"}, 1.5),  # the limit of a parent
        ("0::/kubepods/pod1/c1", "", {"cpu__max": "200000 100000"}, 2),  # a path of the host
        ("3:cpu,cpuacct:/a", "cpu,cpuacct/a", {"cpu__cfs_quota_us": "50000", "cpu__cfs_period_us": "100000"}, 0.5),
        ("0::/", "", {"cpu__max": "max 100000"}, 1e6),
        ("1:cpu:/", "cpu", {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, 1e6),
        ("5:memory:/a", "memory/a", {"cpu__max": "100000 100000"}, 1e6),
    ],
)  # fmt: skip
def test_the_least_quota_counts(mine: str, where: str, files: dict[str, str], cores: float, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(mine)
    _group(tmp_path / "groups" / where, **files)
    assert cpu_quota(tmp_path / "groups", tmp_path / "mine") == cores


@pytest.mark.parametrize(
    ("mine", "where", "files", "nbytes"),
    [
        ("0::/a/b", "a", {"memory__max": "4000000000", "memory__current": "1000000000"}, 3e9),
        (
            "0::/a",
            "a",
            {"memory__max": "4000", "memory__current": "3000", "memory__stat": "anon 2000\ninactive_file 900"},
            1900,
        ),
        ("0::/a/b", "a", {"memory__max": "max", "memory__current": "1"}, None),
        ("4:memory:/job/step", "memory/job", {"memory__limit_in_bytes": "8000", "memory__usage_in_bytes": "500"}, 7500),
        ("4:cpu:/job/step", "memory/job", {"memory__limit_in_bytes": "8000", "memory__usage_in_bytes": "500"}, None),
    ],
)
def test_a_job_has_the_memory_that_its_control_group_has_left(
    mine: str, where: str, files: dict[str, str], nbytes: float | None, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text(mine)
    _group(tmp_path / "groups" / where, **files)
    assert memory_left(tmp_path / "groups", tmp_path / "mine") == nbytes


def test_without_control_groups_affinity_counts(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "none") == 1e6
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


def test_a_process_in_a_real_group_with_a_quota_of_one_core() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    group = Path(f"/sys/fs/cgroup/cpu/scenemask-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        pytest.skip("control groups cannot be made here")
    enter = f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid()))"
    code = f"{enter}; from pipeline.cores import available_cores; print(available_cores())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
        )
    finally:
        group.rmdir()
    assert done.stdout.strip() == "1"
