"""Damaged inputs of every kind: our own errors or a clean success, no crash, no hang, bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz.run import HANG_S, fuzz
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", TARGETS)
def test_damaged_inputs_end_in_our_own_words(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """The seed differs from that of docs/benchmarks/fuzz.md, so that both together see more."""
    few, many = (500, 20_000) if kind == "tiff" else (50, 1000)
    count = many if request.config.getoption("--run-slow") else few
    found = fuzz(kind, count=count, seed=7, folder=tmp_path)
    assert not found.findings, found.findings[:5]
    assert sum(found.outcomes.values()) == count
    assert found.slowest_s < HANG_S
    assert 0 < found.outcomes["ok"] < count or kind == "ledger"


def test_what_crashes_hangs_or_raises_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself, on a reader that does all of it: kinds `_crash`, `_hang` and `_raise` of the child."""
    monkeypatch.setattr("tests.fuzz.run.HANG_S", 2.0)
    for kind, told in (("_crash", "ended with -6"), ("_hang", "nothing for 2 s"), ("_raise", "ZeroDivisionError")):
        (tmp_path / kind).mkdir()
        found = fuzz(kind, count=3, seed=1, folder=tmp_path / kind)
        assert len(found.findings) >= 1, kind
        assert told in found.findings[0]
        assert found.outcomes["FOUND"] == 1, kind
        assert found.outcomes["ok"] == 2
