"""Commands on a real terminal: bars that move, and nothing that breaks over them."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.labelled import document, write_labelled
from tests.scenes import save_unet, smooth_values, write_scene

_START = "import sys; from pipeline.cli import main; sys.exit(main())"


def _on_terminal(*arguments: object) -> tuple[int, str]:
    """Exit code of a command and what its terminal was sent, control sequences left out."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-c", _START, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # the last one on the other side has left
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(parts).decode())
    return child.wait(), text.replace("\r", "\n")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, a model, and a mask of the first."""
    folder = tmp_path_factory.mktemp("terminal")
    for number in range(2):
        data = smooth_values(2, (700, 600), seed=number)
        write_scene(folder / f"s{number}.tif", data, names=("b0", "b1"))
    save_unet(folder / "model", depth=2)
    mask = (np.indices((1, 700, 600)).sum(0) // 90 % 3).astype(np.uint8)
    write_scene(folder / "truth.tif", mask)
    return folder


def _must_be_fine(text: str) -> None:
    assert "Traceback" not in text, text
    assert "BUG-001" not in text, text


def test_segment(ground: Path, tmp_path: Path) -> None:
    """Each stage has its bar, also one that nobody knows the steps of, and all end full."""
    more = ("--vectors", "geojson", "--verify", "4", "--patch", "128", "--tile", "256")
    code, text = _on_terminal("segment", ground / "s0.tif", "-m", ground / "model", "-o", tmp_path / "out", *more)
    _must_be_fine(text)
    assert code == 0, text
    for stage in ("planning", "segmenting", "writing the mask", "tracing polygons", "writing the rest", "verifying"):
        assert re.search(rf"{stage} ━+ +(\d+)/\1 ", text), (stage, text)


def test_batch(ground: Path, tmp_path: Path) -> None:
    scenes = ground / "s0.tif", ground / "s1.tif"
    code, text = _on_terminal("batch", *scenes, "-m", ground / "model", "-o", tmp_path / "out", "--vectors", "none")
    _must_be_fine(text)
    assert code == 0, text
    assert "2 done, 0 failed, 0 left" in text


def test_evaluate_and_vectorize(ground: Path, tmp_path: Path) -> None:
    mask = ground / "truth.tif"
    code, text = _on_terminal("evaluate", mask, mask, "-o", tmp_path / "scores")
    _must_be_fine(text)
    assert code == 0, text
    code, text = _on_terminal("vectorize", mask, "-o", tmp_path / "polygons.gpkg")
    _must_be_fine(text)
    assert code == 0, text


def test_train(tmp_path: Path) -> None:
    write_labelled(tmp_path)
    config = yaml.safe_dump(document(tmp_path / "scene.tif", tmp_path / "labels.tif"))
    (tmp_path / "config.yaml").write_text(config)
    steps = ("schedule.steps=4", "schedule.check_every=2")
    code, text = _on_terminal("train", tmp_path / "config.yaml", "-o", tmp_path / "model", *steps)
    _must_be_fine(text)
    assert code == 0, text
    assert re.search(r"^step 4 ", text, re.MULTILINE), text


@pytest.mark.slow
def test_demo_trains_and_scores(tmp_path: Path) -> None:
    code, text = _on_terminal("demo", "-o", tmp_path / "demo", "--size", "512", "--steps", "2")
    _must_be_fine(text)
    assert code == 0, text
    for stage in ("making the scene", "training", "segmenting", "scoring"):
        assert re.search(rf"{stage} ━+ +(\d+)/\1 ", text), (stage, text)
    shutil.rmtree(tmp_path / "demo")
