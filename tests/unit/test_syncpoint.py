"""Points at which a test kills the process: the right one, the right time, and nothing without the variable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pipeline import syncpoint

_THRICE = "from pipeline.syncpoint import reached\nfor n in range(3): print(n, flush=True); reached('a'); reached('b')"


@pytest.mark.parametrize(
    ("spec", "printed"), [("a:2", "0 1"), ("b", "0"), ("c:1", "0 1 2"), ("a:4", "0 1 2"), ("", "0 1 2")]
)
def test_the_process_ends_when_the_point_comes(spec: str, printed: str) -> None:
    environment = {**os.environ, syncpoint.VARIABLE: spec}
    ended = subprocess.run(
        [sys.executable, "-c", _THRICE], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == printed.split()
    assert ended.returncode == (0 if len(printed) == 5 else -signal.SIGKILL), ended.stderr


def test_unset_nothing_is_kept() -> None:
    syncpoint.reached("anything")
    assert not syncpoint.counts
