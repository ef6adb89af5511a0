"""Decoded blocks that rows of tiles share are kept from one to the next, where memory allows."""

from __future__ import annotations

import itertools
import tempfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio._env import get_gdal_config

from pipeline.grid import SizeRule, Tiling, Window, exact_tiling
from pipeline.infer import source_window
from pipeline.run.basis import find_basis
from pipeline.run.block_cache import bytes_of_a_row, choose_block_cache
from pipeline.run.plan import make_plan, plan_from
from pipeline.run.segment import segment
from pipeline.run.settings import make_settings
from pipeline.scene import BLOCK_CACHE_BYTES, RasterScene, close_all, decoded_bytes, limit_block_cache, open_scene
from tests.networks import unet_model
from tests.scenes import NORTH_UP, save_unet, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.scene import Scene


def _tiling(shape: tuple[int, int], core: tuple[int, int], halo: int) -> Tiling:
    sizes, tile = SizeRule(multiple=16), max(core)
    return exact_tiling(shape, core_hw=core, halo_px=halo, stride=16, margin_px=0, sizes=sizes, tile_px=tile)


def _windows(tiling: Tiling) -> Iterator[Window]:
    """What the worker reads, in order."""
    for tile in tiling.tiles():
        yield source_window(list(tiling.patches(tile.core)), tiling.shape, padding="reflect")


def _file(path: Path, shape: tuple[int, int], block: tuple[int, int], *, bands: int = 2, **profile: Any) -> Path:
    data = np.random.default_rng(0).integers(1, 60_000, (bands, *shape), np.uint16)  # nothing to compress
    tiled = {"tiled": True, "blockysize": block[0], "blockxsize": block[1]}
    return write_scene(path, data, **tiled, compress="deflate", zlevel=1, **profile)


def _decoded(scene: RasterScene, tiling: Tiling, block: tuple[int, int], cache_bytes: float) -> tuple[int, int]:
    """(blocks decoded, blocks there are) where those used last are kept; all bands of a block are one here."""
    per_block = decoded_bytes(scene, Window(row_off=0, col_off=0, height=1, width=1))
    kept: OrderedDict[tuple[int, int], None] = OrderedDict()
    decoded, seen = 0, set()
    for window in _windows(tiling):
        for row in range(window.row_off // block[0], -(-window.row_stop // block[0])):
            for col in range(window.col_off // block[1], -(-window.col_stop // block[1])):
                decoded += (row, col) not in kept
                kept[row, col] = None
                kept.move_to_end((row, col))
                seen.add((row, col))
                while len(kept) * per_block > cache_bytes:
                    kept.popitem(last=False)
    return decoded, len(seen)


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(40, 400), st.integers(40, 400)),
    core=st.tuples(st.sampled_from([32, 64, 96]), st.sampled_from([32, 64, 96])),
    halo=st.sampled_from([0, 16, 48]),
    block=st.tuples(st.sampled_from([16, 32, 64, 128]), st.sampled_from([16, 32, 128])),
)
def test_with_what_is_asked_for_each_block_is_decoded_once(
    shape: tuple[int, int], core: tuple[int, int], halo: int, block: tuple[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = open_scene(_file(Path(folder) / "scene.tif", shape, block))
        assert isinstance(scene, RasterScene)
        tiling = _tiling(shape, core, halo)
        wanted = bytes_of_a_row(scene, tiling, padding="reflect")
        everything = decoded_bytes(scene, Window(row_off=0, col_off=0, height=shape[0], width=shape[1]))
        if wanted:
            decoded, blocks = _decoded(scene, tiling, block, wanted)
            assert decoded == blocks
        else:  # rows share nothing: one row is as good as all
            rows: dict[int, list[Window]] = {}
            for window in _windows(tiling):
                rows.setdefault(window.row_off, []).append(window)
            ends = [(at // block[0], -(-windows[0].row_stop // block[0])) for at, windows in sorted(rows.items())]
            assert all(below[0] >= above[1] for above, below in itertools.pairwise(ends))
        assert wanted <= 3 * everything
        close_all()


def _bytes_read() -> int:
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


def test_gdal_reads_the_file_once_with_it_and_more_than_once_without(tmp_path: Path) -> None:
    shape = 900, 1600
    path = _file(tmp_path / "scene.tif", shape, (128, 128))
    scene, tiling = open_scene(path), _tiling(shape, (256, 256), 48)
    wanted, share = bytes_of_a_row(scene, tiling, padding="reflect"), {}
    try:
        for cache_bytes in (wanted, wanted // 2):
            limit_block_cache(cache_bytes)
            before = _bytes_read()
            for window in _windows(tiling):
                scene.read_block(window)
            share[cache_bytes] = (_bytes_read() - before) / path.stat().st_size
            close_all()
    finally:
        limit_block_cache()
    enough, half = share.values()
    assert enough < 1.05
    assert half > 1.2


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> int:
    """A usual cache that is smaller than a row of the scenes here."""
    for module in ("block_cache", "plan"):
        monkeypatch.setattr(f"pipeline.run.{module}.BLOCK_CACHE_BYTES", 1 << 20)
    return 1 << 20


def test_more_than_the_usual_cache_is_taken_where_it_helps_and_fits(
    tmp_path: Path, usual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = 900, 1600
    scene = open_scene(_file(tmp_path / "scene.tif", shape, (128, 128)))
    tiling = _tiling(shape, (256, 256), 48)
    wanted = bytes_of_a_row(scene, tiling, padding="reflect")
    assert wanted > usual
    for spare, chosen in ((wanted - usual, wanted), (wanted - usual - 1, usual), (10**9, wanted), (-1, usual)):
        assert choose_block_cache(scene, tiling, padding="reflect", spare_bytes=spare) == chosen
    aligned = _tiling(shape, (256, 256), 0)
    assert choose_block_cache(scene, aligned, padding="reflect", spare_bytes=10**9) == usual
    monkeypatch.setattr("pipeline.run.block_cache._MOST_BYTES", wanted - 1)
    assert choose_block_cache(scene, tiling, padding="reflect", spare_bytes=10**9) == usual


def test_bands_of_one_block_count_all_and_those_of_their_own_as_they_are_read(tmp_path: Path) -> None:
    shape, pixel = (256, 256), Window(row_off=130, col_off=10, height=1, width=1)
    for interleave, planes in (("pixel", 3), ("band", 1)):
        path = _file(tmp_path / f"{interleave}.tif", shape, (128, 64), bands=3, interleave=interleave)
        scene = open_scene(path).select([2])
        assert decoded_bytes(scene, pixel) == planes * 2 * 128 * 64
        across = Window(row_off=127, col_off=0, height=2, width=65)
        assert decoded_bytes(scene, across) == 4 * planes * 2 * 128 * 64


def test_files_side_by_side_count_where_they_are_read(tmp_path: Path) -> None:
    left = _file(tmp_path / "left.tif", (256, 256), (128, 128))
    right = _file(tmp_path / "right.tif", (256, 256), (128, 128), transform=NORTH_UP @ Affine.translation(256, 0))
    both: Scene = open_scene([left, right])
    block = 2 * 2 * 128 * 128
    assert decoded_bytes(both, Window(row_off=0, col_off=0, height=10, width=10)) == block
    assert decoded_bytes(both, Window(row_off=0, col_off=250, height=10, width=10)) == 2 * block
    assert decoded_bytes(both, Window(row_off=0, col_off=0, height=256, width=512)) == 8 * block


def test_plans_count_it_within_the_budget(tmp_path: Path, usual: int) -> None:
    shape = 1500, 1500
    scene = open_scene(_file(tmp_path / "scene.tif", shape, (512, 512)))
    model = unet_model(depth=3)
    plans = {
        workers: make_plan(scene, model, make_settings({"patch": 384, "memory": "1.5GB", "workers": workers}))
        for workers in (1, 2)
    }
    assert plans[1].block_cache_bytes == bytes_of_a_row(scene, plans[1].tiling, padding="reflect") > usual
    assert plans[2].block_cache_bytes == usual
    assert plans[1].peak_bytes - plans[2].peak_bytes == plans[1].block_cache_bytes - usual
    assert plans[1].peak_bytes <= 1.5e9
    assert plans[1].summary()["block_cache_bytes"] == plans[1].block_cache_bytes
    assert BLOCK_CACHE_BYTES == 128 << 20


def test_workers_set_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: int) -> None:
    told: list[int] = []
    monkeypatch.setattr("pipeline.run.tile_task.limit_block_cache", told.append)
    path = _file(tmp_path / "scene.tif", (1500, 1500), (512, 512))
    result = segment(path, save_unet(tmp_path / "model", depth=3), tmp_path / "out", patch=384, vectors="none")
    [cache_bytes] = set(told)
    assert cache_bytes > usual
    assert result.summary["plan"]["block_cache_bytes"] == cache_bytes


def test_masks_count_as_they_are_kept(tmp_path: Path) -> None:
    pixel = Window(row_off=0, col_off=0, height=1, width=1)
    scene = open_scene(_file(tmp_path / "scene.tif", (256, 256), (128, 64)))
    assert isinstance(scene, RasterScene)
    for mask, planes in (("none", 0), ("dataset", 1), ("band", 2)):
        assert replace(scene, mask=mask).decoded_bytes(pixel) == (2 * 2 + planes) * 128 * 64


def test_the_last_limit_holds_whoever_opens_a_file_meanwhile(tmp_path: Path) -> None:
    scene = open_scene(_file(tmp_path / "scene.tif", (256, 256), (128, 64)))
    pixel = Window(row_off=0, col_off=0, height=1, width=1)
    try:
        with ThreadPoolExecutor(1) as another:
            another.submit(limit_block_cache, 216 << 20).result()
            limit_block_cache(130 << 20)
            another.submit(scene.read_block, pixel).result()
        assert get_gdal_config("GDAL_CACHEMAX") == 130 << 20
    finally:
        limit_block_cache()
        close_all()


def test_workers_of_other_hosts_keep_no_rows(tmp_path: Path, usual: int) -> None:
    """Their plan rests on what one of them found about itself, as if it were alone."""
    scene = open_scene(_file(tmp_path / "scene.tif", (1500, 1500), (512, 512)))
    model = unet_model(depth=3)
    alone = make_settings({"patch": 384, "memory": "1.5GB"})
    basis = find_basis(scene, model, alone)
    assert plan_from(scene, model, alone, basis).block_cache_bytes > usual
    there = make_settings({"patch": 384, "memory": "1.5GB", "cluster": "tcp://127.0.0.1:9"})
    assert plan_from(scene, model, there, basis).block_cache_bytes == usual


def test_large_tiles_leave_no_room_for_it(tmp_path: Path, usual: int) -> None:
    scene = open_scene(_file(tmp_path / "scene.tif", (6000, 6000), (512, 512), bands=2))
    settings = make_settings({"patch": 384, "tile": 6000, "memory": "1.1GB"})
    plan = make_plan(scene, unet_model(depth=3), settings)
    assert 1.0e9 < plan.peak_bytes <= 1.1e9
    assert plan.block_cache_bytes == usual
