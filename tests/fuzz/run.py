"""Many damaged inputs of a kind through child processes; what crashes, hangs or raises something foreign is a finding.

python -m tests.fuzz.run [--seed 1] [--kinds tiff,yaml] [--tiff 20000] [--others 1000]

Writes docs/benchmarks/fuzz.md; kinds that are left out stay there as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.common import DOCS, publish
from tests.fuzz.targets import ROOT, TARGETS

HANG_S = 10.0
PEAK_BYTES = 10**9


@dataclass(kw_only=True)
class Found:
    """What became of many inputs of one kind."""

    kind: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    """`ok` or a code -> inputs."""
    findings: list[str] = field(default_factory=list)
    """Inputs that ended otherwise."""
    slowest_s: float = 0.0
    peak_bytes: int = 0


def fuzz(kind: str, *, count: int, seed: int, folder: Path) -> Found:
    """Damage and read `count` inputs; a child that dies or stands still costs one, and is started again."""
    found = Found(kind=kind, seed=seed)
    first = 0
    while first < count:
        first = _child(found, first, count, folder)
    if found.peak_bytes > PEAK_BYTES:
        found.findings.append(f"{kind}: {found.peak_bytes / 1e6:.0f} MB were resident")
    return found


def _child(found: Found, first: int, count: int, folder: Path) -> int:
    """One child process, as far as it comes; returns the next input."""
    command = [sys.executable, "-m", "tests.fuzz.child", found.kind, str(found.seed), str(first), str(count - first)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (
        (folder / "stderr.txt").open("wb") as stderr,
        subprocess.Popen(
            [*command, str(folder)], stdout=subprocess.PIPE, stderr=stderr, env=environment, cwd=ROOT, text=True
        ) as child,
    ):
        current = _follow(found, child, first, count)
    if current >= count:
        return count
    if current < first:
        raise RuntimeError((folder / "stderr.txt").read_text(errors="replace"))
    found.outcomes["FOUND"] += 1
    if child.returncode != -signal.SIGKILL:
        words = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
        found.findings.append(f"{found.kind} {current}: ended with {child.returncode}, {' / '.join(words[-3:])}")
    return current + 1


def _follow(found: Found, child: subprocess.Popen[str], first: int, count: int) -> int:
    """The input at which a child ended or stood still; `count` when it did all, less than `first` when none."""
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_pass_on, args=(child, lines), daemon=True).start()
    current, patience_s = first - 1, _START_S
    while True:
        try:
            word, _, rest = lines.get(timeout=patience_s).partition(" ")
        except queue.Empty:
            found.findings.append(f"{found.kind} {current}: nothing for {patience_s:g} s")
            child.kill()
            return current
        patience_s = HANG_S
        if word == "begin":
            current = int(rest)
        elif word == "end":
            _, seconds, outcome = rest.split(" ", 2)
            found.slowest_s = max(found.slowest_s, float(seconds))
            found.outcomes[outcome.split()[0]] += 1
            if outcome.startswith("FOUND"):
                found.findings.append(f"{found.kind} {current}: {outcome}")
        elif word == "peak":
            found.peak_bytes = max(found.peak_bytes, int(rest))
            return count
        else:
            return current


def _pass_on(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line.rstrip("\n"))
    lines.put("")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(TARGETS))
    parser.add_argument("--tiff", type=int, default=20_000)
    parser.add_argument("--others", type=int, default=1000)
    given = parser.parse_args()
    rows, facts = _known()
    for kind in given.kinds.split(","):
        count = given.tiff if kind == "tiff" else given.others
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(kind, count=count, seed=given.seed, folder=Path(folder))
        print(*found.findings, sep="\n")
        told = f"{count} inputs: {len(found.findings)} findings; {found.outcomes['ok']} read, the others refused"
        rows[kind] = f"{told}; slowest {found.slowest_s:.1f} s; {found.peak_bytes / 1e6:.0f} MB resident"
        facts[kind] = {"outcomes": dict(sorted(found.outcomes.items())), "findings": found.findings}
    command = f"make fuzz (--seed {given.seed} --tiff {given.tiff} --others {given.others})"
    publish(
        "fuzz",
        "Damaged inputs: our own errors, or a clean success",
        command,
        [(kind, told, _BAR) for kind, told in rows.items()],
        facts,
    )


def _known() -> tuple[dict[str, str], dict[str, Any]]:
    """What the page says of kinds; those that are run again are replaced."""
    path = DOCS / "fuzz.json"
    part = json.loads(path.read_text())["parts"][""] if path.exists() else {"rows": [], "facts": {}}
    return {kind: told for kind, told, _ in part["rows"]}, part["facts"]


_BAR = "0 findings (crash, hang over 10 s, foreign exception); < 1 GB"
_START_S = 180.0


if __name__ == "__main__":
    main()
