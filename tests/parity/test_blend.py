"""Blend mode against a slow plain loop that knows nothing of tiles, windows or index maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.grid import blend_tiling
from tests.networks import predict_by_tiles, random_scene, reader, unet_model


@pytest.mark.parametrize("overlap", [16, 40])
@pytest.mark.parametrize("shape", [(150, 203), (64, 90), (30, 40)])
def test_blend_equals_a_plain_loop(shape: tuple[int, int], overlap: int) -> None:
    """More than half overlapped, the weights at the scene's own border matter too: they must stay 1."""
    model = unet_model(depth=2, norm="instance")
    data = random_scene(2, shape, seed=3)
    tiling = blend_tiling(
        shape, patch_px=64, overlap_px=overlap, stride=4, margin_px=0, sizes=model.traits.sizes, tile_px=1
    )
    got = predict_by_tiles(model, tiling, reader(data)).probabilities

    sides = [min(64, -(-n // 4) * 4) for n in shape]
    steps = [(side - min(overlap, side - 4)) // 4 * 4 for side in sides]
    starts = [list(range(0, max(n - s, 0) + st, st)) for n, s, st in zip(shape, sides, steps, strict=True)]
    starts = [
        [v for v in row if v == 0 or v - st + s < n] for row, n, s, st in zip(starts, shape, sides, steps, strict=True)
    ]
    reach = [row[-1] + s - n for row, n, s in zip(starts, shape, sides, strict=True)]
    padded = np.pad((data.astype(np.float32) - 500) / 250, ((0, 0), (0, reach[0]), (0, reach[1])), mode="reflect")
    total, weight = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    for row in starts[0]:
        for col in starts[1]:
            with torch.inference_mode():
                patch = torch.from_numpy(padded[None, :, row : row + sides[0], col : col + sides[1]].astype(np.float32))
                p = torch.softmax(model.network(patch)[0], 0).numpy()
            axes = []
            for at, ends, side, step in zip((row, col), starts, sides, steps, strict=True):
                w = np.ones(side)
                for i in range(side - step):
                    ramp = np.sin(np.pi / 2 * (i + 0.5) / (side - step)) ** 2
                    w[i] *= ramp if at != ends[0] else 1
                    w[side - 1 - i] *= ramp if at != ends[-1] else 1
                axes.append(w)
            w2 = axes[0][:, None] * axes[1][None, :]
            total[:, row : row + sides[0], col : col + sides[1]] += p * w2
            weight[row : row + sides[0], col : col + sides[1]] += w2
    expected = (total / weight)[:, : shape[0], : shape[1]]
    assert got is not None
    assert np.abs(got - expected).max() < 1e-5


@pytest.mark.parametrize("tta", ["none", "flips"])
def test_batches_blend_to_the_same_whatever_the_tile(tta: str) -> None:
    """A tile's last batch is filled up: with what, no pixel may tell."""
    model, shape = unet_model(depth=2, norm="instance"), (150, 203)
    data = random_scene(2, shape, seed=3)
    found = {}
    for batch, tile in ((1, 64), (5, 64), (5, 400)):
        tiling = blend_tiling(
            shape, patch_px=64, overlap_px=16, stride=4, margin_px=0, sizes=model.traits.sizes, tile_px=tile
        )
        assert tiling.num_patches % 5  # the last batch of the whole scene is not full
        found[batch, tile] = predict_by_tiles(model, tiling, reader(data), batch=batch, tta=tta)
    one, tiled, whole = found.values()
    assert one.probabilities is not None
    assert tiled.probabilities is not None
    assert whole.probabilities is not None
    assert np.array_equal(tiled.probabilities, whole.probabilities)
    assert np.abs(one.probabilities - tiled.probabilities).max() < 1e-5
