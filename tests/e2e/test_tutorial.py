"""docs/tutorial.md, every command as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import geopandas
import pytest

from tests.commands import Cli

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_the_tutorial_works_as_it_stands(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    ran = []
    for kind, block in re.findall(r"```(console|yaml)\n(.*?)```", text, flags=re.DOTALL):
        if kind == "yaml":
            name = block.split("\n", 1)[0].removeprefix("# ")
            Path(name).write_text(block)
            continue
        for line in block.splitlines():
            assert line.startswith("$ scenemask "), line
            command = shlex.split(line.removeprefix("$ scenemask "))
            status, _, err = cli(*command, "-q")
            assert status == 0, (line, err)
            ran.append(command[0])
    assert {"demo", "train", "segment", "vectorize", "evaluate", "export"} <= set(ran)
    training = json.loads(Path("model/model.json").read_text())["properties"]["scenemask:training"]
    assert training["accuracy"]["test"]["mean_iou"] > 0.7
    report = json.loads(Path("report.json").read_text())
    assert report["overall"]["mean_iou"] > 0.7
    assert len(geopandas.read_file("buildings.gpkg", layer=0)) > 5
    for name in re.findall(r"`([a-z./]+\.(?:png|json|gpkg))`", text):
        assert list(tmp_path.rglob(Path(name).name)), name
