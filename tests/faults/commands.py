"""Real commands, started at once: a process that has imported everything forks one child for each.

What is killed is the command itself, from its arguments on; only the seconds of imports, and of loading compiled
loops, are spared. The process that forks never ran a network, so no thread of PyTorch's is lost in its children.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
_UNREACHABLE = "nowhere:1"
_SETTLED = 120.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code, or minus the signal."""
    out: str
    err: str
    counts: dict[str, int]
    """Sync point -> how often it was reached; empty unless it ended by itself."""


@dataclass(slots=True)
class Running:
    """A command on its way."""

    pid: int
    folder: Path
    _starter: Starter
    _status: int | None = None

    def ended(self) -> bool:
        """Whether it has."""
        if self._status is None:
            self._status = self._starter.ask({"poll": self.pid})["status"]
        return self._status is not None

    def kill(self, signum: int) -> None:
        """Send a signal to the whole group, as a lost machine would take them all."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)

    def wait(self) -> Ended:
        """Until it has ended."""
        deadline = time.monotonic() + _SETTLED
        while not self.ended():
            assert time.monotonic() < deadline, f"still there: {(self.folder / 'err').read_text()}"
            time.sleep(0.005)
        assert self._status is not None
        told = self.folder / "counts"
        counts = json.loads(told.read_text()) if told.exists() else {}
        code = os.waitstatus_to_exitcode(self._status)
        return Ended(code, (self.folder / "out").read_text(), (self.folder / "err").read_text(), counts)


class Starter:
    """Starts `scenemask` commands.

    Args:
        folder: For their output; a folder for each.
        environment: Added to that of the test.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._number = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One line there, one line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, arguments: Sequence[object], *, kill_at: str | None = None, nofile: int | None = None) -> Running:
        """Begin a command.

        Args:
            arguments: After `scenemask`.
            kill_at: Sync point and count; None counts all and kills at none.
            nofile: Limit on open files.
        """
        self._number += 1
        folder = self._folder / f"command-{self._number}"
        folder.mkdir(parents=True)
        request = {
            "arguments": [str(a) for a in arguments],
            "folder": str(folder),
            "kill_at": kill_at,
            "nofile": nofile,
        }
        return Running(self.ask(request)["pid"], folder, self)

    def run(self, arguments: Sequence[object], **options: Any) -> Ended:
        """A command from beginning to end."""
        return self.start(arguments, **options).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)


def _serve() -> None:
    """Loop of the process that forks."""
    import pipeline.cli.app
    import pipeline.cli.progress
    import pipeline.cli.show
    import pipeline.run.segment  # noqa: F401 - all that a command would import first

    _trace_something()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = {"status": status if pid else None}
        else:
            pid = os.fork()
            if pid == 0:
                _command(request)
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _trace_something() -> None:
    """Load the compiled loops."""
    import numpy as np

    from pipeline.run.vectorize import vectorize_to_file
    from tests.scenes import write_scene

    with tempfile.TemporaryDirectory() as folder:
        mask = write_scene(Path(folder) / "mask.tif", np.eye(32, dtype=np.uint8)[np.newaxis])
        vectorize_to_file([mask], Path(folder) / "polygons.geojson", overwrite=True)


def _command(request: Mapping[str, Any]) -> None:
    """One command, in a process and a group of its own; never returns."""
    import atexit
    import resource

    from pipeline import syncpoint
    from pipeline.cli import main

    os.setsid()
    folder = Path(request["folder"])
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), fd)
    if request["nofile"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["nofile"],) * 2)
    syncpoint.arm(request["kill_at"] or _UNREACHABLE)
    sys.argv = ["scenemask", *request["arguments"]]
    code: object = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    finally:
        (folder / "counts").write_text(json.dumps(syncpoint.counts))
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    _serve()
