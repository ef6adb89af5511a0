"""What a command does before and after its work."""

from __future__ import annotations

import subprocess
import sys

_LOOK_AT_THE_END = """
import atexit, gc, sys
default = gc.get_threshold()[0]
seldom = lambda: gc.get_threshold()[0] > 10 * default
atexit.register(lambda: print(gc.get_freeze_count() > 1000, seldom(), len(gc.get_objects())))
from pipeline.cli import main
sys.argv = ["scenemask", "--version"]
main()
"""


def test_objects_that_live_until_the_end_are_not_looked_through() -> None:
    """Neither while they are imported nor when the process ends."""
    ran = subprocess.run([sys.executable, "-c", _LOOK_AT_THE_END], capture_output=True, text=True, check=True)
    frozen, seldom, left = ran.stdout.splitlines()[-1].split()
    assert (frozen, seldom) == ("True", "True")
    assert int(left) < 1000
