"""What a network is given near the rim of a scene: a padded whole scene is the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grid import Padding, Window, source_index
from pipeline.infer import network_input
from pipeline.infer.network_input import Scaler, cut
from pipeline.model import Scaling
from pipeline.scene.base import make_block

SCALING = Scaling(scale=(1.0, 1.0), offset=(0.0, 0.0), mean=(300.0, 500.0), std=(70.0, 90.0))


def whole_padded(
    data: np.ndarray[Any, Any], valid: np.ndarray[Any, Any], around: int, padding: Padding
) -> np.ndarray[Any, Any]:
    """Network input of the whole scene with `around` pixels on each side, by NumPy's own padding."""
    sides = ((0, 0), (around, around), (around, around))
    mode = {"reflect": "reflect", "network": "reflect", "edge": "edge", "zero": "constant"}[padding]
    values, usable = (np.pad(array, sides, mode=mode) for array in (data, valid))  # type: ignore[call-overload]
    gain, bias = (np.array(v, np.float32)[:, None, None] for v in SCALING.gain_and_bias())
    return np.where(usable, values.astype(np.float32) * gain + bias, np.float32(0))


def seen(patch: Window, height: int, width: int, padding: Padding) -> Window:
    """Smallest window of the scene that the patch is filled from."""
    rows = source_index(patch.row_off, patch.row_stop, height, padding=padding)
    cols = source_index(patch.col_off, patch.col_stop, width, padding=padding)
    rows, cols = rows[rows >= 0], cols[cols >= 0]
    return Window.from_bounds(int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1)


@given(st.data())
def test_a_patch_in_pieces_is_that_of_the_padded_scene(data: st.DataObject) -> None:
    height, width = (data.draw(st.integers(2, 12), label=name) for name in ("height", "width"))
    padding: Padding = data.draw(st.sampled_from(["reflect", "edge", "zero", "network"]), label="padding")
    masked = data.draw(st.sampled_from(["nothing", "one plane", "each band"]), label="masked")
    around = min(height, width) - 1  # as far as one reflection goes
    row, col = data.draw(st.integers(-around, height - 1)), data.draw(st.integers(-around, width - 1))
    stop_row = data.draw(st.integers(max(row, 0) + 1, height + around))
    stop_col = data.draw(st.integers(max(col, 0) + 1, width + around))
    patch = Window.from_bounds(row, col, stop_row, stop_col)
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    stored = random.integers(0, 1000, (2, height, width)).astype(np.uint16)
    kept = random.random(({"one plane": 1}.get(masked, 2), height, width)) < 0.8
    valid = np.ones(stored.shape, bool) if masked == "nothing" else np.broadcast_to(kept, stored.shape)
    outer = seen(patch, height, width, padding)
    inside = (slice(None), *outer.slices_in(Window.from_bounds(0, 0, height, width)))
    block = make_block(stored[inside], None if masked == "nothing" else kept[inside])

    pieces = cut(block, outer, patch, (height, width), padding=padding, bring=lambda a: torch.from_numpy(a.copy()))
    scaler = Scaler(SCALING)
    scaler.fill(pieces, patch).fill_(7.0)  # nothing of an earlier patch may be left
    made = scaler.fill(pieces, patch)[0].numpy()

    frame = Window.from_bounds(-around, -around, height + around, width + around)
    expected = whole_padded(stored, valid, around, padding)[(slice(None), *patch.slices_in(frame))]
    np.testing.assert_array_equal(made, expected)

    top = data.draw(st.integers(0, patch.height - 1))
    lower = Window.from_bounds(patch.row_off + top, patch.col_off, patch.row_stop, patch.col_stop)
    parts = [part for part in (piece.within(lower) for piece in pieces) if part.window.num_pixels]
    np.testing.assert_array_equal(Scaler(SCALING).fill(parts, lower)[0].numpy(), expected[:, top:])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
def test_rows_that_do_not_fit_a_cache_are_scaled_like_any(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strip by strip, what is not valid NaN or beyond float32 in the file."""
    monkeypatch.setattr(network_input, "_STRIP_BYTES", 7 * 2 * 30 * 4)
    random = np.random.default_rng(0)
    stored = random.integers(0, 127, (2, 40, 30)).astype(dtype)
    valid = random.random(stored.shape) < 0.7
    if stored.dtype.kind == "f":
        stored[~valid] = random.choice([np.nan, np.inf, -np.inf, np.finfo(dtype).max], np.count_nonzero(~valid))
    gain, bias = (np.array(v, np.float32)[:, None, None] for v in SCALING.gain_and_bias())
    with np.errstate(all="ignore"):
        expected = np.where(valid, stored.astype(np.float32) * gain + bias, np.float32(0))
    made = Scaler(SCALING)(torch.from_numpy(stored), torch.from_numpy(~valid))[0].numpy()
    np.testing.assert_array_equal(made.view(np.uint32), expected.view(np.uint32))


def test_pixels_of_the_scene_are_not_copied_and_all_valid_ones_need_no_mask() -> None:
    stored = np.arange(2 * 8 * 8, dtype=np.uint16).reshape(2, 8, 8)
    kept = np.ones((1, 8, 8), bool)
    kept[0, 0, 7] = False
    block = make_block(stored, kept)
    whole, left = Window.from_bounds(0, 0, 8, 8), Window.from_bounds(-2, -2, 8, 5)
    pieces = cut(block, whole, left, (8, 8), padding="reflect", bring=torch.from_numpy)
    [real] = [piece for piece in pieces if np.shares_memory(piece.data.numpy(), stored)]
    assert real.window == Window.from_bounds(0, 0, 8, 5)
    assert all(piece.invalid is None for piece in pieces)
    [right] = cut(block, whole, Window.from_bounds(0, 4, 8, 8), (8, 8), padding="reflect", bring=torch.from_numpy)
    assert right.invalid is not None
    assert right.invalid.shape == (1, 8, 4)
    assert right.invalid.sum() == 1
