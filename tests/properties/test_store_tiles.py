"""Law: whatever the scene, the tile and the window, what is read is what was written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import Window, iter_windows
from pipeline.store import TileStore, sha256_array
from pipeline.store.tiles import chunk_side


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], Window]:
    height, width = draw(st.integers(1, 600)), draw(st.integers(1, 600))
    shard = (draw(st.integers(1, 20)) * 64, draw(st.integers(1, 20)) * 64)
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    window = Window.from_bounds(row, col, draw(st.integers(row, height)), draw(st.integers(col, width)))
    return (height, width), shard, window


@settings(max_examples=20)
@given(layouts(), st.integers(0, 3), st.sampled_from(["uint8", "uint16"]), st.integers(0, 2**32), st.data())
def test_what_is_written_is_read(
    layout: tuple[tuple[int, int], tuple[int, int], Window], classes: int, dtype: str, seed: int, data: st.DataObject
) -> None:
    shape, shard, window = layout
    fill = 255 if dtype == "uint8" else 65535
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 200, shape).astype(dtype)
    probabilities = rng.integers(0, 251, (classes, *shape)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        store = TileStore.create(
            Path(folder) / "s", shape=shape, dtype=dtype, fill=fill, shard_hw=shard, num_classes=classes or None
        )
        tiles = list(iter_windows(shape, shard))
        skipped = data.draw(st.sets(st.integers(0, len(tiles) - 1), max_size=2))
        for number, tile in enumerate(tiles):
            cut = (slice(tile.row_off, tile.row_stop), slice(tile.col_off, tile.col_stop))
            if number in skipped:
                mask[cut] = fill
                probabilities[(slice(None), *cut)] = 255
                continue
            kept = probabilities[(slice(None), *cut)] if classes else None
            digest = store.write(tile, mask[cut], kept)
            assert digest.mask_sha256 == sha256_array(np.ascontiguousarray(mask[cut]))
        cut = (slice(window.row_off, window.row_stop), slice(window.col_off, window.col_stop))
        np.testing.assert_array_equal(store.read_mask(window), mask[cut])
        if classes:
            np.testing.assert_array_equal(store.read_probabilities(window), probabilities[(slice(None), *cut)])


@given(st.integers(1, 20_000))
def test_chunks_divide_their_shard_and_are_neither_tiny_nor_needlessly_large(shard: int) -> None:
    side = chunk_side(shard)
    assert shard % side == 0
    assert side == shard or 256 <= side <= 1024
    if side > 1024:
        assert not any(shard % s == 0 for s in range(256, 1025))
