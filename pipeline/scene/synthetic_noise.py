"""Randomness as a function of place: any window of the synthetic world can be made alone and fits its neighbours."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage, sparse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from pipeline.grid import Window

TEXTURE_PX = 1021
"""Side of the periodic textures; prime, so that repeats never line up with blocks."""
_RIM_PX = 1100  # part of a texture that is repeated at its end; painted blocks are not larger
_CROWN_PX = 7  # lattice of tree crowns
_CANOPY_PX = 73 * _CROWN_PX  # side of the texture of crowns, which is dear to make


def hash_unit(ix: ArrayLike, iy: ArrayLike, *, seed: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) that depend on two integers and the seed only; shapes broadcast."""
    x, y = np.broadcast_arrays(np.atleast_1d(ix).astype(np.int64), np.atleast_1d(iy).astype(np.int64))
    mixed = (x * 0x9E3779B1) ^ (y * 0x85EBCA77) ^ (seed * 0xC2B2AE3D & 0xFFFFFFFF)
    h = (mixed & 0xFFFFFFFF).astype(np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # lowbias32, github.com/skeeto/hash-prospector
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    h ^= h >> np.uint32(16)
    return np.asarray(h, np.float64) / 2.0**32


def smooth_noise(window: Window, *, spacing_px: int, seed: int) -> NDArray[np.float32]:
    """Smooth noise over a window, shape `(y, x)`, mean 0, roughly within [-1, 1]: cubic B-splines on a lattice."""
    rows, row_weights = _spline(window.row_off, window.height, spacing_px)
    cols, col_weights = _spline(window.col_off, window.width, spacing_px)
    lattice = hash_unit(cols[np.newaxis, :], rows[:, np.newaxis], seed=seed).astype(np.float32)
    # Sparse: four lattice lines per pixel line, and no BLAS threads in what may run beside other work.
    wide = (col_weights @ ((lattice - np.float32(0.5)) * np.float32(3.5)).T).T
    field: NDArray[np.float32] = row_weights @ np.ascontiguousarray(wide)
    return field


def smooth_noise_at(points_xy: NDArray[np.float64], *, spacing_px: int, seed: int) -> NDArray[np.float64]:
    """Smooth noise at single points, shape `(n,)`, within [-1, 1]; shape of `points_xy`: `(n, 2)`."""
    scaled = points_xy / spacing_px
    base = np.floor(scaled).astype(np.int64)
    t = scaled - base
    t = t * t * (3 - 2 * t)
    total = np.zeros(len(points_xy))
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (t[:, 0] if dx else 1 - t[:, 0]) * (t[:, 1] if dy else 1 - t[:, 1])
            total += weight * (2 * hash_unit(base[:, 0] + dx, base[:, 1] + dy, seed=seed) - 1)
    return total


def _spline(start: int, length: int, spacing_px: int) -> tuple[NDArray[np.int64], sparse.csr_array]:
    """Lattice indices that reach `length` pixels from `start`, and the weights `(length, lattice)` of each."""
    position = (np.arange(start, start + length) + 0.5) / spacing_px
    base = np.floor(position).astype(np.int64)
    t = position - base
    taps = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=-1) / 6
    lattice = np.arange(base[0] - 1, base[-1] + 3)
    columns = (base - base[0])[:, np.newaxis] + np.arange(4)
    weights = (taps.astype(np.float32).ravel(), columns.ravel(), np.arange(0, 4 * length + 1, 4))
    return lattice, sparse.csr_array(weights, shape=(length, len(lattice)))


def cut(texture: NDArray[np.float32], window: Window, *, shift: int = 0) -> NDArray[np.float32]:
    """A window of an endlessly repeated texture, shape `(y, x)`; `shift` gives another part of it.

    A view wherever the window fits into the texture's repeated rim: look, do not write.
    """
    period = len(texture) - _RIM_PX
    row, col = (window.row_off + 331 * shift) % period, (window.col_off + 173 * shift) % period
    if max(window.shape) <= _RIM_PX:
        return texture[row : row + window.height, col : col + window.width]
    rows, cols = (np.arange(row, row + window.height) % period, np.arange(col, col + window.width) % period)
    return texture.take(rows, axis=0).take(cols, axis=1)


def _repeated(texture: NDArray[np.float32]) -> NDArray[np.float32]:
    """The texture with its beginning once more at its end, so that most windows are plain slices."""
    return np.pad(texture, ((0, _RIM_PX), (0, _RIM_PX)), mode="wrap")


@lru_cache(maxsize=4)
def white_texture(seed: int) -> NDArray[np.float32]:
    """Independent normal numbers, one per pixel."""
    return _repeated(_white(seed))


def _white(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, 1]).standard_normal((TEXTURE_PX, TEXTURE_PX), np.float32)


@lru_cache(maxsize=4)
def grain_texture(seed: int) -> NDArray[np.float32]:
    """Clods, grass, gravel: noise correlated over two or three pixels, mean 0, standard deviation 1."""
    grain: NDArray[np.float32] = ndimage.gaussian_filter(_white(seed + 1), 1.1, mode="wrap")
    return _repeated(grain / grain.std())


@lru_cache(maxsize=4)
def patch_texture(seed: int) -> NDArray[np.float32]:
    """Bushes, beds, ragged rims: noise correlated over about ten pixels, mean 0, standard deviation 1."""
    patches: NDArray[np.float32] = ndimage.gaussian_filter(_white(seed + 2), 4.0, mode="wrap")
    return _repeated(patches / patches.std())


@lru_cache(maxsize=4)
def crown_texture(seed: int) -> NDArray[np.float32]:
    """Brightness of a closed canopy lit from the south-east, about 0.3 (gaps) to 1.3 (sunny side of a tall tree)."""
    n = _CANOPY_PX // _CROWN_PX
    rng = np.random.default_rng([seed, 2])
    offset_yx, radius = rng.uniform(0.1, 0.9, (2, n, n)), rng.uniform(3.2, 6.0, (n, n))
    glow = rng.uniform(0.8, 1.2, (n, n))
    y, x = np.mgrid[0:_CANOPY_PX, 0:_CANOPY_PX].astype(np.float32)
    cell_y, cell_x = np.mgrid[0:_CANOPY_PX, 0:_CANOPY_PX] // _CROWN_PX
    height = np.zeros((_CANOPY_PX, _CANOPY_PX), np.float32)
    bright = np.full((_CANOPY_PX, _CANOPY_PX), 0.45, np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, col = (cell_y + dy) % n, (cell_x + dx) % n
            far_y = y - (cell_y + dy + offset_yx[0][row, col]) * _CROWN_PX
            far_x = x - (cell_x + dx + offset_yx[1][row, col]) * _CROWN_PX
            dome = np.sqrt(np.maximum(radius[row, col] ** 2 - far_y**2 - far_x**2, 0)).astype(np.float32)
            higher = dome > height
            height[higher], bright[higher] = dome[higher], glow[row, col][higher]
    slope = height - np.roll(height, (2, 2), (0, 1))  # rising towards north-west = facing away from the sun
    lit = np.clip(0.78 - 0.09 * slope + 0.05 * height, 0.25, 1.35)
    crowns: NDArray[np.float32] = ndimage.gaussian_filter((lit * bright).astype(np.float32), 0.6, mode="wrap")
    return _repeated(crowns)
