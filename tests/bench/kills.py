"""Kills of runs, many of them: does the same command end with the same bytes? Into docs/benchmarks/kills.md.

python -m tests.bench.kills [--kills 200] [--minutes 60] [--seed 1]
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.common import publish
from tests.faults.commands import Starter
from tests.faults.kills import (
    TILES,
    Ground,
    Outcome,
    points,
    prepared,
    strike_client,
    strike_cluster,
    strike_local_worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_SHARES = {"point": 0.57, "moment": 0.30, "worker": 0.03, "cluster worker": 0.06, "scheduler": 0.04}
"""Of all kills. Worker processes take long to start, so there are fewer of them."""
_TITLES = {
    "point": "client, at a sync point (each of them)",
    "moment": "client, at a random moment",
    "worker": "one of two worker processes of the run",
    "cluster worker": "a worker of a Dask cluster",
    "scheduler": "the scheduler of a Dask cluster, started again",
}


def strikes(ground: Ground, count: int, rng: random.Random) -> list[tuple[str, Callable[[], Outcome]]]:
    """`count` kills in random order, so that any part of them is a fair sample."""
    numbers = {kind: round(share * count) for kind, share in _SHARES.items()}
    each = -(-numbers["point"] // len(ground.counts))
    chosen = points(ground.counts, rng, each=each)
    spare = [p for p in points(ground.counts, rng, each=10 * each) if p not in chosen]
    chosen = (chosen + rng.sample(spare, min(len(spare), max(0, numbers["point"] - len(chosen)))))[: numbers["point"]]
    made: list[tuple[str, Callable[[], Outcome]]] = [
        ("point", lambda p=point: strike_client(ground, point=p)) for point in chosen
    ]
    for _ in range(numbers["moment"]):
        after_s = rng.uniform(0.05, ground.seconds)
        made.append(("moment", lambda s=after_s: strike_client(ground, after_s=s)))
    for kind in ("worker", "cluster worker", "scheduler"):
        afters = [rng.randrange(1, TILES - 4) for _ in range(numbers[kind])]
        made += [(kind, _on_workers(ground, kind, after, random.Random(rng.random()))) for after in afters]
    rng.shuffle(made)
    return made


def _on_workers(ground: Ground, kind: str, after: int, rng: random.Random) -> Callable[[], Outcome]:
    if kind == "worker":
        return lambda: strike_local_worker(ground, after_tiles=after, rng=rng)
    who = "scheduler" if kind == "scheduler" else "worker"
    return lambda: strike_cluster(ground, who=who, after_tiles=after, rng=rng)


def main() -> None:
    """Kill, compare, publish."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": f"{folder}/cache"}
        os.environ.update(environment)
        with Starter(Path(folder) / "commands", environment) as starter, prepared(Path(folder), starter) as ground:
            deadline = time.monotonic() + 60 * options.minutes
            for number, (kind, strike) in enumerate(strikes(ground, options.kills, random.Random(options.seed))):
                if time.monotonic() > deadline:
                    print(f"out of time after {number} kills")
                    break
                try:
                    outcomes[kind].append(strike())
                    print(f"{number + 1}/{options.kills}  {outcomes[kind][-1]}", flush=True)
                except AssertionError as wrong:
                    failures.append(f"{kind}: {wrong}")
                    print(f"{number + 1}/{options.kills}  {kind}: FAILED: {wrong}", flush=True)
            names = len(ground.counts)
    _publish(outcomes, failures, options, names)


def _publish(outcomes: dict[str, list[Outcome]], failures: list[str], options: argparse.Namespace, names: int) -> None:
    rows, total = [], len(failures)
    for kind, title in _TITLES.items():
        done = outcomes[kind]
        wrong = sum(failure.startswith(f"{kind}:") for failure in failures)
        total += len(done)
        hits = sum(outcome.hit for outcome in done)
        most = max((outcome.recomputed for outcome in done), default=0)
        text = (
            f"{len(done) + wrong} kills, {hits + wrong} before the end; **{wrong} differ**; at most {most} tiles twice"
        )
        rows.append(
            (title, text, "mask bytes and polygons identical, nothing left behind; at most the tiles in flight twice")
        )
    rows.append(("all of them", f"**{total} kills, {len(failures)} mismatches**", f"{options.kills} kills, 0"))
    facts = {
        "seed": options.seed,
        "tiles": TILES,
        "sync_points": names,
        "failures": failures,
        "outcomes": {kind: [asdict(outcome) for outcome in done] for kind, done in outcomes.items()},
    }
    command = f"make bench-kills (--kills {options.kills} --minutes {options.minutes:g} --seed {options.seed})"
    publish("kills", "Killed runs: the same command ends with the same bytes", command, rows, facts)


if __name__ == "__main__":
    main()
