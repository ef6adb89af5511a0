"""A1, A2, A6, A7, A11, A16: kill -9 of client, worker and scheduler; the same command ends with the same bytes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.faults.commands import ROOT, Starter
from tests.faults.kills import (
    Ground,
    check,
    points,
    prepared,
    strike_client,
    strike_cluster,
    strike_local_worker,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEED = 20261126


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, starter: Starter) -> Iterator[Ground]:
    with prepared(tmp_path_factory.mktemp("kills"), starter) as made:
        yield made


def _strike_points(ground: Ground, *, each: int) -> None:
    chosen = points(ground.counts, random.Random(_SEED), each=each)
    assert len({point.partition(":")[0] for point in chosen}) >= 19, chosen
    for point in chosen:
        strike_client(ground, point=point)


def _strike_moments(ground: Ground, *, count: int) -> None:
    rng = random.Random(_SEED)
    hits = [strike_client(ground, after_s=rng.uniform(0.05, ground.seconds)).hit for _ in range(count)]
    assert sum(hits) >= count / 2, hits


def test_a1_a6_a7_killed_at_every_sync_point(ground: Ground) -> None:
    """19 kills: beside an fsync, a rename, an append, a removal, at the borders of stages, amid mask and polygons."""
    _strike_points(ground, each=1)


def test_a1_a16_killed_at_random_moments(ground: Ground) -> None:
    _strike_moments(ground, count=3)


def test_a2_a_worker_process_of_the_run_is_killed(ground: Ground) -> None:
    assert strike_local_worker(ground, after_tiles=8, rng=random.Random(_SEED)).hit


def test_a2_a11_worker_and_scheduler_of_a_cluster_are_killed(ground: Ground) -> None:
    rng = random.Random(_SEED)
    assert strike_cluster(ground, who="worker", after_tiles=rng.randrange(3, 12), rng=rng).hit
    assert strike_cluster(ground, who="scheduler", after_tiles=rng.randrange(3, 12), rng=rng).hit


def test_a1_the_command_as_a_shell_starts_it_is_killed(ground: Ground) -> None:
    """The other tests spare the imports by forking; this one does not."""
    place = ground.place()
    command = [str(part) for part in ground.command(place / "out", "--scratch", place / "scratch")]
    whole = [sys.executable, "-c", "from pipeline.cli import main; main()", *command]
    process = subprocess.Popen(
        whole, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    ledger = place / "out" / ".scenemask" / "ledger"
    while process.poll() is None and not any(path.stat().st_size for path in ledger.glob("*.jsonl")):
        pass
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    assert ground.starter.run(command).code == 0
    check(ground, place)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a1_a2_a11_two_hundred_kills(ground: Ground) -> None:
    rng = random.Random(_SEED + 1)
    _strike_points(ground, each=6)
    _strike_moments(ground, count=80)
    for _ in range(10):
        strike_local_worker(ground, after_tiles=rng.randrange(1, 25), rng=rng)
    for who in ["worker", "scheduler"] * 10:
        strike_cluster(ground, who=who, after_tiles=rng.randrange(1, 25), rng=rng)
