"""The command line in this process."""

from __future__ import annotations

import sys

import pytest

from pipeline.cli.app import main


class Cli:
    """Runs `scenemask` with some arguments: exit code, stdout, stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["scenemask", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = self._capsys.readouterr()
        return int(end.value.code or 0), out, err


def assert_block(err: str, code: str) -> None:
    """The four-line form, and no traceback."""
    first = next((line for line in err.splitlines() if line.startswith("ERROR  ")), "no error block")
    assert code in first, err
    assert "  what   " in err
    assert "  fix    " in err
    assert "Traceback" not in err
