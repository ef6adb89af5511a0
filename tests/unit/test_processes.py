"""Folders that tell whose they are: those of the dead are removed, those of the living and of strangers stay."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.processes import is_dead, make_temporary_folder, start_of, temporary_folder

_MAKE = """
import os, signal, sys
from pathlib import Path
from pipeline.processes import make_temporary_folder
made = make_temporary_folder(Path(sys.argv[1]), sys.argv[2])
(made / "file").write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def _killed(parent: Path, prefix: str) -> None:
    ended = subprocess.run([sys.executable, "-c", _MAKE, str(parent), prefix], check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("prefix", [".lakes.gpkg.", "polygons-", ".a[b]*?.", ".\n-"])
def test_a7_what_the_dead_left_goes_and_nothing_else(tmp_path: Path, prefix: str) -> None:
    _killed(tmp_path, prefix)
    (dead,) = tmp_path.iterdir()
    others = [f"{prefix}mine", "other", dead.name.replace(dead.name.removeprefix(prefix)[:8], "0" * 8)]
    for name in others:
        (tmp_path / name).mkdir()
    link = tmp_path / dead.name[:-1]
    link = link.with_name(link.name + ("0" if dead.name[-1] != "0" else "1"))
    link.symlink_to(tmp_path / "other")
    with temporary_folder(tmp_path, prefix) as first, temporary_folder(tmp_path, prefix) as second:
        assert first != second
        assert not dead.exists()
        assert {p.name for p in tmp_path.iterdir()} == {*others, link.name, first.name, second.name}
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert {p.name for p in tmp_path.iterdir()} == {*others, link.name}


def test_another_prefix_is_left_alone(tmp_path: Path) -> None:
    _killed(tmp_path, ".b.gpkg.")
    make_temporary_folder(tmp_path, ".b.")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pid_that_is_used_again_is_another_process() -> None:
    start = start_of(os.getpid())
    assert start
    assert is_dead(os.getpid(), start) is False
    assert is_dead(os.getpid(), start - 1) is True
    assert is_dead(2**22 - 7, 1) is True
