"""The scratch store: shards, checksums, many writers."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.errors import InfrastructureError, ResourceError
from pipeline.grid import Window, iter_windows
from pipeline.store import DamagedTilesError, TileDigest, TileStore, quantize_probabilities, sha256_array
from pipeline.store.tiles import chunk_side

from .helpers import tiny_disk

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (700, 900)
SHARD = (320, 320)


def _store(path: Path, *, num_classes: int | None = None, shape: tuple[int, int] = SHAPE) -> TileStore:
    return TileStore.create(path, shape=shape, dtype="uint8", fill=255, shard_hw=SHARD, num_classes=num_classes)


def _tiles(shape: tuple[int, int] = SHAPE) -> list[Window]:
    return list(iter_windows(shape, SHARD))


def _noise(window: Window, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng([seed, window.row_off, window.col_off])
    return rng.integers(0, 5, window.shape, dtype=np.uint8)


def _fill(store: TileStore) -> dict[int, TileDigest | None]:
    return {i: store.write(w, _noise(w)) for i, w in enumerate(_tiles())}


def _shards(path: Path) -> list[Path]:
    return sorted(p for p in (path / "mask" / "c").rglob("*") if p.is_file())


def test_what_is_written_is_read_across_tiles(tmp_path: Path) -> None:
    store = _store(tmp_path / "s")
    _fill(store)
    whole = store.read_mask(Window(row_off=0, col_off=0, height=700, width=900))
    for window in _tiles():
        np.testing.assert_array_equal(
            whole[window.row_off : window.row_stop, window.col_off : window.col_stop], _noise(window)
        )
    across = Window(row_off=300, col_off=311, height=50, width=400)
    np.testing.assert_array_equal(store.read_mask(across), whole[300:350, 311:711])
    assert len(_shards(tmp_path / "s")) == len(_tiles())


def test_unwritten_tiles_read_as_nodata(tmp_path: Path) -> None:
    store = _store(tmp_path / "s", num_classes=2)
    window = _tiles()[3]
    assert (store.read_mask(window) == 255).all()
    assert store.read_probabilities(window).shape == (2, *window.shape)
    assert (store.read_probabilities(window) == 255).all()


def test_a_written_tile_has_a_shard_whatever_it_holds(tmp_path: Path) -> None:
    store = _store(tmp_path / "s")
    tile = _tiles()[0]
    store.write(tile, np.full(tile.shape, 255, np.uint8))
    assert len(_shards(tmp_path / "s")) == 1, "it was compared with the fill value, which costs more than storing it"
    assert (store.read_mask(tile) == 255).all()


def test_probabilities_round_trip_and_digest(tmp_path: Path) -> None:
    store = _store(tmp_path / "s", num_classes=3)
    window = _tiles()[-1]
    rng = np.random.default_rng(0)
    kept = quantize_probabilities(rng.random((3, *window.shape)).astype(np.float32))
    digest = store.write(window, _noise(window), kept)
    np.testing.assert_array_equal(store.read_probabilities(window), kept)
    assert digest.prob_sha256 == sha256_array(kept)
    assert digest.mask_sha256 == sha256_array(_noise(window))
    assert store.has_probabilities


def test_uint16_masks(tmp_path: Path) -> None:
    store = TileStore.create(tmp_path / "s", shape=(100, 90), dtype="uint16", fill=65535, shard_hw=(512, 512))
    window = Window(row_off=0, col_off=0, height=100, width=90)
    mask = np.arange(9000, dtype=np.uint16).reshape(100, 90)
    store.write(window, mask)
    np.testing.assert_array_equal(store.read_mask(window), mask)
    assert store.read_mask(window).dtype == np.uint16


@pytest.mark.parametrize(
    "window",
    [
        Window(row_off=0, col_off=0, height=320, width=319),
        Window(row_off=1, col_off=0, height=320, width=320),
        Window(row_off=640, col_off=640, height=320, width=320),
        Window(row_off=0, col_off=0, height=640, width=320),
    ],
)
def test_a_window_that_is_not_one_tile_is_refused(tmp_path: Path, window: Window) -> None:
    store = _store(tmp_path / "s")
    with pytest.raises(AssertionError, match="tile"):
        store.write(window, np.zeros(window.shape, np.uint8))


def test_wrong_shape_dtype_or_missing_probabilities_are_refused(tmp_path: Path) -> None:
    window = _tiles()[0]
    with pytest.raises(AssertionError, match="do not fit"):
        _store(tmp_path / "a").write(window, np.zeros((3, 3), np.uint8))
    with pytest.raises(AssertionError, match="uint16 pixels"):
        _store(tmp_path / "b").write(window, np.zeros(window.shape, np.uint16))
    with pytest.raises(AssertionError, match="all tiles or none"):
        _store(tmp_path / "c", num_classes=2).write(window, _noise(window))


def test_the_store_pickles_as_its_path(tmp_path: Path) -> None:
    store = _store(tmp_path / "s")
    _fill(store)
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert len(pickle.dumps(store)) < 400
    np.testing.assert_array_equal(again.read_mask(_tiles()[1]), _noise(_tiles()[1]))
    assert TileStore.open(tmp_path / "s").shape == SHAPE


def test_opening_nothing_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TileStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("side", "chunk"), [(1, 1), (1024, 1024), (1664, 832), (2048, 1024), (8192, 1024), (1021 * 2, 1021), (1999, 1999)]
)
def test_chunks_divide_the_shard(side: int, chunk: int) -> None:
    assert chunk_side(side) == chunk
    assert side % chunk == 0


def test_b10_every_flipped_bit_is_detected_and_healed(tmp_path: Path) -> None:
    """Every other one in the index at a shard's end, which is small but decides where all else is."""
    store = _store(tmp_path / "s")
    digests = _fill(store)
    rng = np.random.default_rng(4)
    shards = _shards(tmp_path / "s")
    for case in range(100):
        victim = shards[rng.integers(len(shards))]
        good = victim.read_bytes()
        bad = bytearray(good)
        position = int(rng.integers(0 if case % 2 else len(bad) - 20, len(bad)))
        bad[position] ^= 1 << int(rng.integers(8))
        victim.write_bytes(bytes(bad))
        found = store.find_damaged(_tiles(), digests)
        row, col = (int(part) for part in victim.relative_to(tmp_path / "s" / "mask" / "c").parts)
        assert found == [row * 3 + col], f"bit flip at byte {position} of {len(bad)}"
        window = _tiles()[found[0]]
        assert store.write(window, _noise(window)) == digests[found[0]]
        assert victim.read_bytes() == good


def test_b10_a_damaged_shard_names_its_tile_in_a_read_across_many(tmp_path: Path) -> None:
    store = _store(tmp_path / "s")
    _fill(store)
    victim = tmp_path / "s" / "mask" / "c" / "1" / "2"
    bad = bytearray(victim.read_bytes())
    bad[10] ^= 4
    victim.write_bytes(bytes(bad))
    with pytest.raises(DamagedTilesError) as caught:
        store.read_mask(Window(row_off=0, col_off=0, height=700, width=900))
    assert caught.value.code == "ST-001"
    assert caught.value.windows == (_tiles()[5],)
    assert "rows 320-640, columns 640-900" in str(caught.value)
    assert isinstance(caught.value, InfrastructureError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.windows == caught.value.windows
    assert again.block() == caught.value.block()
    store.read_mask(Window(row_off=0, col_off=0, height=320, width=900))  # the others still read


@pytest.mark.parametrize("keep", [0, 1, 7, 0.5])
def test_b10_a_truncated_shard_is_detected(tmp_path: Path, keep: float) -> None:
    store = _store(tmp_path / "s")
    digests = _fill(store)
    victim = _shards(tmp_path / "s")[0]
    data = victim.read_bytes()
    victim.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    assert store.find_damaged(_tiles(), digests) == [0]
    assert store.write(_tiles()[0], _noise(_tiles()[0])) == digests[0]
    assert victim.read_bytes() == data


def test_a_missing_shard_or_a_wrongly_empty_one_is_found(tmp_path: Path) -> None:
    store = _store(tmp_path / "s")
    digests = _fill(store)
    _shards(tmp_path / "s")[2].unlink()
    digests[4] = None
    assert store.find_damaged(_tiles(), digests) == [2, 4]
    del digests[2]
    assert store.find_damaged(_tiles(), digests) == [4]


def test_find_damaged_looks_at_probabilities_too(tmp_path: Path) -> None:
    store = _store(tmp_path / "s", num_classes=2)
    window = _tiles()[0]
    digest = store.write(window, _noise(window), np.zeros((2, *window.shape), np.uint8))
    assert store.find_damaged(_tiles(), {0: digest}) == []
    store.write(window, _noise(window), np.ones((2, *window.shape), np.uint8))
    assert store.find_damaged(_tiles(), {0: digest}) == [0]


def test_threads_write_different_tiles_at_once(tmp_path: Path) -> None:
    store = _store(tmp_path / "s")
    digests: dict[int, TileDigest | None] = {}

    def work(start: int) -> None:
        for i, window in list(enumerate(_tiles()))[start::4]:
            digests[i] = store.write(window, _noise(window))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == len(_tiles())
    assert store.find_damaged(_tiles(), digests) == []


def _write_all(path: str, start: int, step: int) -> None:
    store = TileStore.open(Path(path))
    for window in _tiles()[start::step]:
        store.write(window, _noise(window))


def test_a3_processes_write_at_once_even_the_same_tiles(tmp_path: Path) -> None:
    store = _store(tmp_path / "s")
    context = multiprocessing.get_context("spawn")
    # Two cover everything, a third repeats every tile: duplicates are harmless.
    jobs = [context.Process(target=_write_all, args=(str(tmp_path / "s"), *arg)) for arg in ((0, 2), (1, 2), (0, 1))]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    digests = {i: TileDigest(mask_sha256=sha256_array(_noise(w)), prob_sha256=None) for i, w in enumerate(_tiles())}
    assert store.find_damaged(_tiles(), digests) == []


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    store = _store(tmp_path / "s")
    digests = _fill(store)
    shard = _shards(tmp_path / "s")[0]
    shard.with_name("0.deadbeef.partial").write_bytes(b"half")
    assert store.remove_partials() == 1
    assert store.find_damaged(_tiles(), digests) == []


def test_b1_a_full_disk_is_told_and_heals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (1024, 1024), dtype=np.uint8)
    window = Window(row_off=0, col_off=0, height=1024, width=1024)
    with tiny_disk(tmp_path / "disk", 700_000) as disk:
        store = TileStore.create(disk / "s", shape=(1024, 1024), dtype="uint8", fill=255, shard_hw=(1024, 1024))
        with pytest.raises(ResourceError, match=r"the disk is full: 1\.05 MB needed") as caught:
            store.write(window, noise)
        assert caught.value.code == "RS-001"
        flat = np.zeros_like(noise)
        store.write(window, flat)
        np.testing.assert_array_equal(store.read_mask(window), flat)
