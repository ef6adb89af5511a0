"""Reads damaged inputs one after another, under a limit of memory, and tells what became of each.

python -m tests.fuzz.child KIND SEED FIRST COUNT FOLDER

Prints `begin N` before, and `end N SECONDS OUTCOME` after each: whoever reads that knows which one
killed or stopped us.
"""

from __future__ import annotations

import logging
import random
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

from pipeline.errors import PipelineError
from tests.fuzz.targets import MISBEHAVING, TARGETS

_MORE_BYTES = 2**30
"""Of address space, beyond what the libraries take."""


def main() -> None:
    """The command line."""
    kind, seed, first, count, place = sys.argv[1:6]
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    folder, target = Path(place), (TARGETS | MISBEHAVING)[kind]
    seeds = target.seeds(folder)
    _run(target.read, target.write(seeds[0], random.Random(0), folder))  # loads the libraries
    limit = _address_space() + _MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(int(first), int(first) + int(count)):
        print("begin", number, flush=True)
        rng = random.Random(f"{kind} {seed} {number}")
        path = target.write(rng.choice(seeds), rng, folder)
        since = time.monotonic()
        outcome = _run(target.read, path)
        print("end", number, f"{time.monotonic() - since:.3f}", outcome, flush=True)
    print("peak", _peak_bytes(), flush=True)


def _run(read: object, path: Path) -> str:
    try:
        read(path)  # type: ignore[operator]
    except PipelineError as error:
        error.block()
        return error.code
    except Exception:  # noqa: BLE001 - the finding
        return "FOUND " + repr(traceback.format_exc())
    return "ok"


def _peak_bytes() -> int:
    """Of this process; what getrusage tells includes the parent's before the start."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
