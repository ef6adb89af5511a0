"""What has killed workers is tried once more in a process of its own, which may die without harm to anyone.

    python -m pipeline.run.apart ASKED ANSWERED

Both are files in a private folder of the process that waits: a pickled call, and what became of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.protocol.pickle import dumps, loads

from pipeline.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Callable


def run_apart(function: Callable[..., Any], *arguments: object) -> Any:
    """`function(*arguments)` in a fresh process of this machine.

    Raises:
        ResourceError: RS-003 when the process was killed, as for want of memory; RS-008 when it crashed.
        Exception: What the function raised.
    """
    with tempfile.TemporaryDirectory(prefix="scenemask-apart-") as folder:
        asked, answered = Path(folder) / "asked", Path(folder) / "answered"
        asked.write_bytes(dumps((function, arguments)))
        process = subprocess.Popen(  # noqa: S603 - our own module, with files of our own
            [sys.executable, "-m", "pipeline.run.apart", str(asked), str(answered)],
            stdin=subprocess.PIPE,  # whose end tells it that nobody waits any more
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        with process:
            status = process.wait()
        if not answered.exists():
            raise _died(status)
        succeeded, answer = loads(answered.read_bytes())
    if succeeded:
        return answer
    raise answer


def _died(status: int) -> ResourceError:
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    if status == -signal.SIGKILL:
        return ResourceError(
            "worker processes were killed while they computed this, as happens where memory ran out, and so was one "
            "that did nothing else",
            code="RS-003",
            title="Worker was killed",
            fix="give less --memory (smaller patches) or fewer --workers, or more memory to the job",
        )
    return ResourceError(
        f"worker processes crash on this, and so did one that did nothing else ({how})",
        code="RS-008",
        title="Worker crashes",
        fix="look at this window of the scene with `scenemask inspect` and another program; try --backend torch or "
        "--device cpu; the others are finished and kept",
    )


def _main(asked: str, answered: str) -> None:
    from pipeline.run.travel import portable  # noqa: PLC0415 - this module is also run by itself

    threading.Thread(target=_end_with_parent, args=(Path(asked).parent,), daemon=True).start()
    function, arguments = loads(Path(asked).read_bytes())
    try:
        answer: tuple[bool, object] = (True, function(*arguments))
    except Exception as error:  # noqa: BLE001 - told to the process that waits
        answer = (False, portable(error))
    # Under another name first: half an answer is none.
    making = Path(answered).with_suffix(".making")
    making.write_bytes(dumps(answer))
    making.rename(answered)


def _end_with_parent(folder: Path) -> None:
    """Once the process that waits is gone, so is the reason for this one."""
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
