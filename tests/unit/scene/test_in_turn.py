"""Scenes whose neighbouring windows one thread reads with less work than several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import xarray as xr
from affine import Affine

from pipeline.access import Access
from pipeline.scene import close_all, open_scene, shares_blocks
from pipeline.scene.rescale import RescaledScene
from tests.infra.range_server import RangeServer
from tests.scenes import NORTH_UP, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHAPE = (60, 80)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    with RangeServer(tmp_path) as running:
        yield running
    close_all()


def test_files_on_disk_are_read_in_turn_and_files_behind_a_server_are_not(tmp_path: Path, server: RangeServer) -> None:
    data = smooth_values(2, SHAPE)
    one = write_scene(tmp_path / "one.tif", data)
    two = write_scene(tmp_path / "two.tif", data, transform=NORTH_UP @ Affine.translation(SHAPE[1], 0))
    local = open_scene(one)
    remote = open_scene(server.url("one.tif"), access=Access(allow_loopback=True))
    array = open_scene(xr.DataArray(data, dims=("band", "y", "x")), allow_no_crs=True)
    assert shares_blocks(local)
    assert shares_blocks(open_scene([one, two]))
    assert shares_blocks(RescaledScene(scene=local, constants={}, truth="the test"))
    assert not shares_blocks(remote)
    assert not shares_blocks(RescaledScene(scene=remote, constants={}, truth="the test"))
    assert not shares_blocks(array)
