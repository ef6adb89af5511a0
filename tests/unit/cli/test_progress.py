"""Progress without a terminal: plain lines with rates and the time that is left."""

from __future__ import annotations

import re

import pytest

import pipeline.cli.progress as room
from pipeline.cli.progress import run_listener
from pipeline.run.events import Notice, StageAdvanced, StageFinished, StageStarted, silent


class _Clock:
    """Stands in for `time`: moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(room, "time", made)
    return made


def _run(clock: _Clock, *, verbose: int, done_before: int = 0, seconds: float = 2.0) -> None:
    """Ten tiles of 1 Mpx."""
    with run_listener(quiet=False, verbose=verbose) as listener:
        listener(Notice(text="look at this"))
        listener(StageStarted(name="infer", total=10, done=done_before))
        for done in range(done_before + 1, 11):
            clock.now += seconds
            listener(StageAdvanced(name="infer", done=done, total=10, pixels=1_000_000))
        listener(StageFinished(name="infer", seconds=20.0))


def test_lines_come_every_ten_seconds(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    _run(clock, verbose=0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "note: look at this",
        "segmenting (10 steps), warming up",
        "  5/10  0.50 tiles/s 0.50 Mpx/s  eta 10 s",
        "  done in 20.0 s",
    ]


def test_verbose_tells_of_each_tile(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    _run(clock, verbose=1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == [f"{n}/10" for n in range(1, 10)]
    assert lines[2].endswith("eta 18 s")
    assert lines[-2].endswith("eta 2 s")


def test_what_an_earlier_run_did_is_no_speed(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    _run(clock, verbose=0, done_before=4, seconds=5.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "segmenting (10 steps, 4 done before), warming up"
    assert lines[2] == "  6/10  0.20 tiles/s 0.20 Mpx/s  eta 20 s"


def test_stages_without_pixels_tell_steps(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with run_listener(quiet=False, verbose=1) as listener:
        listener(StageStarted(name="train", total=4))
        clock.now += 0.5
        listener(StageAdvanced(name="train", done=1, total=4))
    assert capsys.readouterr().err.splitlines() == ["training (4 steps)", "  1/4  2.0/s  eta 2 s"]


def test_lines_hold_no_control_characters(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    _run(clock, verbose=1)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", capsys.readouterr().err)


def test_quiet_says_nothing(clock: _Clock) -> None:
    with run_listener(quiet=True, verbose=2) as listener:
        assert listener is silent


def test_every_stage_of_the_commands_has_words() -> None:
    assert set(room._LABELS) >= {"scene", "train", "infer", "mask", "polygons", "files", "score"}
