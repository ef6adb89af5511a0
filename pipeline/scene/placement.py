"""Where the pixels of one grid lie in another: by two factors and shifts, or through CRS, control points or RPCs.

Positions are in pixels of the source from its outer corner, centres at halves, and depend on the pixel alone: exact
ones for grids whose axes agree, interpolated between nodes of one lattice, which begins at the target's origin, for
all others.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import pyproj
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.errors import TransformWarning
from rasterio.transform import GCPTransformer, RPCTransformer

from pipeline.scene.crs import same_wkt
from pipeline.scene.datasets import silenced

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.grid import GeoBox, Window

    Positions: TypeAlias = tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]

Kernel: TypeAlias = Literal["nearest", "bilinear", "cubic", "average"]
_SNAP_PX = 1e-5
"""Factors and shifts this close to a fraction are that fraction: decimals of a geotransform are rounded."""
_ERROR_PX = 0.01
"""Largest error of interpolated positions."""
_STEPS = (64, 32, 16, 8, 4, 2, 1)


class Placement(Protocol):
    """A frozen recipe that finds positions."""

    @property
    def scale_yx(self) -> tuple[float, float]:
        """Source pixels per target pixel, down and along; at the middle where it varies."""
        ...

    def span(self, window: Window) -> tuple[float, float, float, float] | None:
        """Bounds of `positions`: lowest and highest row, lowest and highest column; None without any."""
        ...

    def positions(self, window: Window) -> Positions:
        """(rows, columns) in the source of the centres of a window's pixels, `(y, 1)` and `(1, x)` or both `(y, x)`.

        NaN where a pixel lies nowhere in the source's world.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AlongAxes:
    """Both grids have one CRS and parallel axes: position = factor x (pixel + 0.5) + shift."""

    factor_yx: tuple[float, float]
    shift_yx: tuple[float, float]

    @property
    def scale_yx(self) -> tuple[float, float]:
        """See `Placement`."""
        return abs(self.factor_yx[0]), abs(self.factor_yx[1])

    def offset(self) -> tuple[int, int] | None:
        """(row, column) of the target's origin in the source where pixels coincide; None where they do not."""
        row, col = self.shift_yx
        if self.factor_yx != (1.0, 1.0) or not (row.is_integer() and col.is_integer()):
            return None
        return int(row), int(col)

    def span(self, window: Window) -> tuple[float, float, float, float] | None:
        """See `Placement`."""
        return _bounds(self.positions(window))

    def positions(self, window: Window) -> Positions:
        """See `Placement`."""
        rows = self.factor_yx[0] * (np.arange(window.row_off, window.row_stop) + 0.5) + self.shift_yx[0]
        cols = self.factor_yx[1] * (np.arange(window.col_off, window.col_stop) + 0.5) + self.shift_yx[1]
        return rows[:, None], cols[None, :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Georeference:
    """How the pixels of a source are placed on Earth where no geotransform does it."""

    crs_wkt: str
    """CRS of the points."""
    gcps: tuple[tuple[float, float, float, float, float], ...] = ()
    """Control points: row, column, x, y, z."""
    rpcs: Any = None
    """Coefficients, as rasterio reads them."""
    height_m: float = 0.0
    """Of the ground above the ellipsoid, with RPCs; with `dem` what is added to its heights."""
    dem: str | None = None
    """Raster of heights of the ground, with RPCs: absolute path."""

    def rpc_options(self) -> dict[str, Any]:
        """As GDAL's transformer takes them."""
        return {"RPC_HEIGHT": self.height_m, **({"RPC_DEM": self.dem} if self.dem else {})}

    def control_points(self) -> list[GroundControlPoint]:
        """As rasterio takes them, which cannot be compared or hashed."""
        return [GroundControlPoint(row=r, col=c, x=x, y=y, z=z) for r, c, x, y, z in self.gcps]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warped:
    """Positions through coordinates on Earth, at the nodes of a lattice, with straight lines between them."""

    target: Affine
    """Of the target."""
    target_wkt: str
    source: Affine | Georeference
    source_wkt: str
    step: int
    """Pixels of the target between nodes."""
    scale_yx: tuple[float, float]
    """See `Placement`."""

    def span(self, window: Window) -> tuple[float, float, float, float] | None:
        """See `Placement`."""
        return _bounds(self._nodes(window))

    def positions(self, window: Window) -> Positions:
        """See `Placement`."""
        rows, cols = self._nodes(window)
        down = (np.arange(window.row_off, window.row_stop) + 0.5) / self.step
        along = (np.arange(window.col_off, window.col_stop) + 0.5) / self.step
        first = window.row_off // self.step, window.col_off // self.step
        return _between(rows, down, along, first), _between(cols, down, along, first)

    def _nodes(self, window: Window) -> Positions:
        tops = np.arange(window.row_off // self.step, (window.row_stop - 1) // self.step + 2) * float(self.step)
        lefts = np.arange(window.col_off // self.step, (window.col_stop - 1) // self.step + 2) * float(self.step)
        return self.at(*np.broadcast_arrays(tops[:, None], lefts[None, :]))

    def at(self, rows: NDArray[Any], cols: NDArray[Any]) -> Positions:
        """Exact positions in the source of points of the target, both in pixels from the corner."""
        xs, ys = self.target @ (cols.ravel(), rows.ravel())
        if self.source_wkt != self.target_wkt:
            xs, ys = transformer_between(self.target_wkt, self.source_wkt).transform(xs, ys)
        xs, ys = np.asarray(xs), np.asarray(ys)
        known = np.isfinite(xs) & np.isfinite(ys)  # infinite where there is no place
        found = np.full((2, *xs.shape), np.nan)
        if known.any():
            found[:, known] = _pixels_of(self.source, xs[known], ys[known])
        return found[0].reshape(rows.shape), found[1].reshape(rows.shape)


def place(target: GeoBox, source: GeoBox, *, reference: Georeference | None = None) -> Placement:
    """The placement of a target's pixels in a source.

    Args:
        target: Grid that is wanted.
        source: Grid that there is.
        reference: What places the source where its transform does not.
    """
    same = reference is None and same_wkt(target.crs_wkt, source.crs_wkt)
    if same:
        found = ~source.transform @ target.transform
        if abs(found.b) * target.height < _SNAP_PX and abs(found.d) * target.width < _SNAP_PX:
            factor = _snapped(found.e, target.height), _snapped(found.a, target.width)
            return AlongAxes(factor_yx=factor, shift_yx=(_snapped(found.f, 1), _snapped(found.c, 1)))
    assert target.crs_wkt is not None
    wkt = source.crs_wkt if reference is None else reference.crs_wkt
    assert wkt is not None
    warped = functools.partial(
        Warped,
        target=target.transform,
        target_wkt=target.crs_wkt,
        source=source.transform if reference is None else reference,
        source_wkt=wkt,
    )
    scale = _scale_in_the_middle(warped(step=1, scale_yx=(1.0, 1.0)), target)
    for step in _STEPS:
        chosen = warped(step=step, scale_yx=scale)
        if _largest_error(chosen, target) <= _ERROR_PX:
            break
    return chosen


def _bounds(positions: Positions) -> tuple[float, float, float, float] | None:
    rows, cols = positions
    rows, cols = rows[np.isfinite(rows)], cols[np.isfinite(cols)]
    if not rows.size or not cols.size:
        return None
    return float(rows.min()), float(rows.max()), float(cols.min()), float(cols.max())


def _snapped(value: float, length: int) -> float:
    near = float(Fraction(value).limit_denominator(4096))
    return near if abs(near - value) * length < _SNAP_PX else value


def _scale_in_the_middle(warped: Warped, target: GeoBox) -> tuple[float, float]:
    """Lengths, in source pixels, of what a step down and a step along the target add to row and column."""
    row, col = target.height / 2, target.width / 2
    rows, cols = warped.at(np.array([[row, row + 1, row]]), np.array([[col, col, col + 1]]))
    down = math.hypot(rows[0, 1] - rows[0, 0], rows[0, 2] - rows[0, 0])
    along = math.hypot(cols[0, 1] - cols[0, 0], cols[0, 2] - cols[0, 0])
    known = math.isfinite(down) and math.isfinite(along) and down > 0 and along > 0
    return (float(down), float(along)) if known else (1.0, 1.0)


def _largest_error(warped: Warped, target: GeoBox) -> float:
    """Of interpolated positions, in the middle of cells spread over the target; 0 where none has a position."""
    if warped.step == 1:
        return 0.0
    from pipeline.grid import Window  # noqa: PLC0415 - for types elsewhere

    worst = 0.0
    for down in np.linspace(0, 1, 7):
        for along in np.linspace(0, 1, 7):
            row = int(down * max(target.height - 1, 0)) // warped.step * warped.step + warped.step // 2
            col = int(along * max(target.width - 1, 0)) // warped.step * warped.step + warped.step // 2
            guess = warped.positions(Window(row_off=row, col_off=col, height=1, width=1))
            exact = warped.at(np.array([[row + 0.5]]), np.array([[col + 0.5]]))
            error = max(abs(float(g[0, 0] - e[0, 0])) for g, e in zip(guess, exact, strict=True))
            if not math.isfinite(error):  # beyond the edge of the world, or of a model of heights within the scene
                has_heights = isinstance(warped.source, Georeference) and warped.source.dem is not None
                error = math.inf if has_heights and np.isfinite(exact).all() else 0.0
            worst = max(worst, error)
    return worst


def _between(nodes: NDArray[Any], down: NDArray[Any], along: NDArray[Any], first: tuple[int, int]) -> NDArray[Any]:
    """Bilinear between nodes; `down` and `along` count them from the target's origin."""
    i, j = np.floor(down).astype(int), np.floor(along).astype(int)
    v, u = (down - i)[:, None], (along - j)[None, :]
    i, j = (i - first[0])[:, None], (j - first[1])[None, :]
    upper = nodes[i, j] * (1 - u) + nodes[i, j + 1] * u
    lower = nodes[i + 1, j] * (1 - u) + nodes[i + 1, j + 1] * u
    between: NDArray[Any] = upper * (1 - v) + lower * v
    return between


def _pixels_of(source: Affine | Georeference, xs: NDArray[Any], ys: NDArray[Any]) -> Positions:
    if isinstance(source, Affine):
        cols, rows = ~source @ (xs, ys)
        return np.asarray(rows), np.asarray(cols)
    with silenced(TransformWarning), _transformer(source) as transformer:  # it says what is infinite then
        rows, cols = transformer.rowcol(xs, ys, op=np.asarray)  # no zs: they would be added to the height
    found = np.array([rows, cols], np.float64)
    found[:, ~np.isfinite(found).all(axis=0)] = np.nan
    return found[0], found[1]


def _transformer(source: Georeference) -> Any:
    if source.rpcs is not None:
        return RPCTransformer(source.rpcs, **source.rpc_options())
    return GCPTransformer(source.control_points())


@functools.lru_cache(maxsize=16)
def transformer_between(one: str, other: str) -> pyproj.Transformer:
    """PROJ's, which gives no place to points that have none; GDAL's raises over the first of them."""
    return pyproj.Transformer.from_crs(pyproj.CRS.from_wkt(one), pyproj.CRS.from_wkt(other), always_xy=True)
