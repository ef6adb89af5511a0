"""Windows that are measured on: where they are enough, no others are read; elsewhere others are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.run.scene_samples import sample_blocks
from pipeline.scene import RasterScene, open_scene
from tests.scenes import write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.grid import Window
    from pipeline.scene import Block


@pytest.mark.parametrize("valid_rows", [(0, 400), (0, 60), (200, 210)])
def test_windows_with_valid_pixels_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valid_rows: tuple[int, int]
) -> None:
    data = np.zeros((1, 400, 400), np.uint16)
    data[:, slice(*valid_rows)] = np.arange(1, 401)
    scene = open_scene(write_scene(tmp_path / "s.tif", data, nodata=0))
    windows: list[Window] = []
    read_block = RasterScene.read_block

    def watched(self: RasterScene, window: Window) -> Block:
        windows.append(window)
        return read_block(self, window)

    monkeypatch.setattr(RasterScene, "read_block", watched)
    found = list(sample_blocks(scene, 40))
    usable = [w for w in windows if w.row_off < valid_rows[1] and w.row_stop > valid_rows[0]]
    assert len(set(windows)) == len(windows) <= 16
    assert len(found) == len(usable) <= 4
    assert len(found) == 4 or len(windows) == 16
    assert all(valid.any() and (values[0][valid] > 0).all() for values, valid in found)


def test_without_valid_pixels_there_are_none(tmp_path: Path) -> None:
    scene = open_scene(write_scene(tmp_path / "s.tif", np.zeros((1, 90, 70), np.uint16), nodata=0))
    assert list(sample_blocks(scene, 40)) == []
