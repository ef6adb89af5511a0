"""The finished mask: pixels, georeference, colours, determinism, and disks that fill up."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp

from pipeline.errors import OutputError, PipelineError, ResourceError
from pipeline.grid import Window
from pipeline.legend import Legend, default_legend
from pipeline.store import (
    DamagedTilesError,
    cog_scratch_bytes,
    quantize_probabilities,
    write_mask_cog,
    write_probability_cog,
)

from .helpers import Scene, geobox_of, legend_of, smooth_mask, tiny_disk


def _write(path: Path, scene: Scene, **changes: Any) -> Path:
    options: dict[str, Any] = {"geobox": geobox_of(scene.shape), "legend": legend_of(6), "digests": scene.digests}
    write_mask_cog(path, read=scene.read, tiles=scene.tiles, **{**options, **changes})
    return path


def _overviews(path: Path) -> list[Any]:
    with rasterio.open(path) as source:
        count = len(source.overviews(1))
    levels = []
    for number in range(count):
        with rasterio.open(path, overview_level=number) as source:
            levels.append(source.read())
    return levels


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (511, 513), (512, 512), (1030, 2051)])
def test_pixels_are_those_of_the_store(tmp_path: Path, shape: tuple[int, int]) -> None:
    scene = Scene(smooth_mask(shape), 208)
    path = _write(tmp_path / "mask.tif", scene)
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(1), scene.pixels)
        assert source.nodata == 255
        assert source.crs.to_epsg() == 32633
        assert source.transform == geobox_of(shape).transform
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.block_shapes[0] == (512, 512)
    assert [p.name for p in tmp_path.iterdir()] == ["mask.tif"]


def test_colours_and_tags(tmp_path: Path) -> None:
    scene = Scene(smooth_mask((300, 300)), 128)
    path = _write(tmp_path / "mask.tif", scene, tags={"TIFFTAG_SOFTWARE": "scenemask 0", "MODEL_SHA256": "ab"})
    with rasterio.open(path) as source:
        table = source.colormap(1)
        tags = source.tags()
        assert source.colorinterp == (ColorInterp.palette,)
        assert source.descriptions == ("class",)
    for info in legend_of(6):
        assert table[info.value] == (*info.color, 255)
    assert table[255] == (0, 0, 0, 0)
    assert tags["TIFFTAG_SOFTWARE"] == "scenemask 0"
    assert tags["MODEL_SHA256"] == "ab"
    assert "TIFFTAG_DATETIME" not in tags


def test_uint16_masks(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 300, (600, 700)).astype(np.uint16)
    pixels[:50] = 65535
    scene = Scene(pixels, 256, nodata=65535)
    path = _write(tmp_path / "mask.tif", scene, legend=legend_of(300))
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(1), pixels)
        assert source.nodata == 65535


@pytest.mark.parametrize(
    "transform",
    [
        Affine(10, 0, 5e5, 0, 10, 4e6),
        Affine.translation(5e5, 4e6) @ Affine.rotation(20) @ Affine.scale(10, -10),
        Affine(10, 3, 5e5, 1, -7, 4e6),
        Affine(0.1 / 3, 0, 1 / 7, 0, -0.1 / 3, 2 / 7),
        Affine.identity(),
    ],
)
@pytest.mark.parametrize("with_crs", [True, False])
def test_c8_c9_every_transform_is_kept(tmp_path: Path, transform: Affine, with_crs: bool) -> None:  # noqa: FBT001
    scene = Scene(smooth_mask((600, 90)), 64)
    geobox = geobox_of(scene.shape, transform=transform)
    if not with_crs:
        geobox = geobox_of(scene.shape, transform=transform, crs_wkt=None)
    path = _write(tmp_path / "mask.tif", scene, geobox=geobox)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as source:
            np.testing.assert_allclose(list(source.transform), list(transform), rtol=1e-15)
            assert (source.crs is not None) == with_crs
            np.testing.assert_array_equal(source.read(1), scene.pixels)


def test_equal_runs_give_equal_bytes_whatever_the_tiles_and_the_place(tmp_path: Path) -> None:
    pixels = smooth_mask((1500, 1300))
    hashes = set()
    for number, tile in enumerate((200, 512, 1500, 333)):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        _write(folder / "mask.tif", Scene(pixels, tile), cache_mb=16 * (number + 1))
        hashes.add(hashlib.sha256((folder / "mask.tif").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_overviews_hold_real_classes_only(tmp_path: Path) -> None:
    scene = Scene(smooth_mask((2100, 1700), classes=(0, 1, 5)), 700)
    levels = _overviews(_write(tmp_path / "mask.tif", scene))
    assert [level.shape[1:] for level in levels] == [(1050, 850), (525, 425), (263, 213)]
    for level in levels:
        assert set(np.unique(level)) == {0, 1, 5, 255}
    # A flat corner without class stays without class, a flat inside keeps its class.
    assert (levels[-1][0, :40, :20] == 255).all()


def test_empty_tiles_are_nodata_and_nothing_else(tmp_path: Path) -> None:
    pixels = np.full((900, 900), 255, np.uint8)
    scene = Scene(pixels, 300)
    assert set(scene.digests.values()) == {None}
    with rasterio.open(_write(tmp_path / "mask.tif", scene)) as source:
        assert (source.read(1) == 255).all()
    pixels[10, 10] = 1
    with pytest.raises(DamagedTilesError) as caught:
        _write(tmp_path / "mask.tif", scene)
    assert caught.value.windows == (scene.tiles[0],)


def test_pixels_unlike_the_ledger_stop_the_run_and_leave_nothing(tmp_path: Path) -> None:
    scene = Scene(smooth_mask((700, 700)), 200)
    scene.pixels[450, 450] ^= 1
    scene.pixels[0, 699] ^= 1
    with pytest.raises(DamagedTilesError) as caught:
        _write(tmp_path / "mask.tif", scene)
    assert caught.value.code == "ST-002"
    assert caught.value.windows == (scene.tiles[3], scene.tiles[10])
    assert list(tmp_path.iterdir()) == []


def test_every_tile_is_compared(tmp_path: Path) -> None:
    scene = Scene(smooth_mask((700, 700)), 200)
    scene.pixels ^= 1
    with pytest.raises(DamagedTilesError) as caught:
        _write(tmp_path / "mask.tif", scene)
    assert list(caught.value.windows) == list(scene.tiles)


def test_a_tile_without_a_record_is_our_own_bug(tmp_path: Path) -> None:
    scene = Scene(smooth_mask((300, 300)), 200)
    del scene.digests[2]
    with pytest.raises(AssertionError, match=r"without a record: \[2\]"):
        _write(tmp_path / "mask.tif", scene)


def test_errors_of_the_reader_pass_and_leave_nothing(tmp_path: Path) -> None:
    scene = Scene(smooth_mask((700, 700)), 200)
    error = DamagedTilesError("x", code="ST-001", title="t", windows=scene.tiles[:1])

    def read(_: Window) -> Any:
        raise error

    with pytest.raises(DamagedTilesError) as caught:
        write_mask_cog(
            tmp_path / "mask.tif",
            read=read,
            tiles=scene.tiles,
            digests=scene.digests,
            geobox=geobox_of(scene.shape),
            legend=legend_of(6),
        )
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["pixels", "overview", "truncate"])
def test_what_the_driver_breaks_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    scene = Scene(smooth_mask((1100, 1100)), 300)
    copy = rasterio.shutil.copy

    def broken(source: str, target: str, **options: Any) -> None:
        copy(source, target, **options)
        if options["driver"] != "COG":
            return
        path = Path(target)
        if damage == "truncate":
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
            return
        # Zero a block's bytes in the file: what a write that failed silently leaves.
        with rasterio.open(path) as written:
            tag = written.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1, ovr=0 if damage == "overview" else None)
        with path.open("r+b") as file:
            file.seek(int(tag))
            file.write(b"\0" * 32)

    monkeypatch.setattr(rasterio.shutil, "copy", broken)
    with pytest.raises(PipelineError) as caught:
        _write(tmp_path / "mask.tif", scene)
    assert caught.value.code == "OU-005"
    assert "reads back differently" in caught.value.what
    assert list(tmp_path.iterdir()) == []


NOISE = Scene(np.random.default_rng(1).integers(0, 5, (1024, 1024)).astype(np.uint8), 512)


@pytest.mark.parametrize("kilobytes", [0, 60, 250, 400, 500, 560, 620, 700, 800, 900, 1000, 1400, 4000])
def test_b1_a_disk_of_any_size_gives_a_whole_file_or_an_error(tmp_path: Path, kilobytes: int) -> None:
    with tiny_disk(tmp_path / "disk", kilobytes * 1024 + 8192) as disk:
        failure: ResourceError | None = None
        try:
            _write(disk / "mask.tif", NOISE)
        except ResourceError as error:
            failure = error
        if failure is None:
            assert kilobytes > 500
            with rasterio.open(disk / "mask.tif") as source:
                np.testing.assert_array_equal(source.read(1), NOISE.pixels)
            _write(tmp_path / "elsewhere.tif", NOISE)
            assert (tmp_path / "elsewhere.tif").read_bytes() == (disk / "mask.tif").read_bytes()
        else:
            assert kilobytes < 1400
            assert failure.code == "RS-001"
            assert f"({cog_scratch_bytes((1024, 1024))} bytes)" in failure.what
            assert list(disk.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        _write(tmp_path / "nowhere" / "mask.tif", Scene(smooth_mask((50, 50)), 50))
    assert caught.value.code == "OU-005"


def test_memory_stays_bounded_for_wide_scenes(tmp_path: Path) -> None:
    largest = 0
    shape = (600, 200_000)
    flat = np.zeros((1, 1), np.uint8)

    def read(window: Window) -> Any:
        nonlocal largest
        largest = max(largest, window.num_pixels)
        return np.broadcast_to(flat, window.shape)

    tiles = [
        Window(row_off=0, col_off=0, height=600, width=100_000),
        Window(row_off=0, col_off=100_000, height=600, width=100_000),
    ]
    digest = hashlib.sha256(bytes(60_000_000)).hexdigest()
    write_mask_cog(
        tmp_path / "mask.tif",
        read=read,
        tiles=tiles,
        digests={0: digest, 1: digest},
        geobox=geobox_of(shape),
        legend=legend_of(2),
    )
    assert largest <= 32 << 20


@pytest.mark.parametrize("classes", [1, 3, 4, 6, 70, 300])
def test_probabilities(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((classes, 700, 600)).astype(np.float32)
    values[:, :100, :50] = np.nan
    scene = Scene(quantize_probabilities(values), 300)
    legend = default_legend([f"größe {i}" for i in range(classes)])
    path = tmp_path / "probabilities.tif"
    for _ in range(2):
        write_probability_cog(
            path,
            read=scene.read,  # type: ignore[arg-type]
            tiles=scene.tiles,
            digests=scene.digests,
            geobox=geobox_of(scene.shape),
            legend=legend,
        )
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(source.read(), scene.pixels)
        assert source.nodata == 255
        assert all(height * width * classes <= 16 << 20 for height, width in source.block_shapes)  # read at once
        assert source.scales == (1 / 250,) * classes
        assert source.offsets == (0.0,) * classes
        assert source.descriptions == tuple(c.name for c in legend)
        assert ColorInterp.alpha not in source.colorinterp
        assert ColorInterp.red not in source.colorinterp
        assert source.dataset_mask()[200, 200] == 255  # a fourth band taken for transparency would punch holes
    (level,) = _overviews(path)
    inside = scene.pixels[:, 100:, 50:].astype(float).reshape(classes, 300, 2, 275, 2).mean(axis=(2, 4))
    assert np.abs(level[:, 50:, 25:] - inside).max() <= 0.5
    assert (level[:, :50, :25] == 255).all()


def test_a6_leftovers_of_a_killed_assembly_do_not_disturb(tmp_path: Path) -> None:
    (tmp_path / "mask.tif").write_bytes(b"half")
    (tmp_path / "mask.ovr.tmp").write_bytes(b"half")
    _write(tmp_path / "mask.tif", Scene(smooth_mask((700, 700)), 200))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.tif"]


def test_t15_a_link_at_the_target_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "mask.tif").symlink_to(tmp_path / "victim")
    _write(tmp_path / "mask.tif", Scene(smooth_mask((70, 70)), 64))
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "mask.tif").is_symlink()
    assert os.stat(tmp_path / "mask.tif").st_size > 100  # noqa: PTH116


def test_a_legend_of_one_class(tmp_path: Path) -> None:
    legend = Legend(default_legend(["only"]).classes)
    path = _write(tmp_path / "mask.tif", Scene(np.zeros((20, 20), np.uint8), 10), legend=legend)
    with rasterio.open(path) as source:
        assert (source.read(1) == 0).all()
