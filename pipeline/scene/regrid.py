"""The grid that a scene is read on: its own, a coarser or finer one, one in another CRS, or that of another file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.warp import calculate_default_transform

from pipeline.errors import InputError
from pipeline.grid import GeoBox
from pipeline.scene.crs import parse_crs, same_wkt, wkt_of
from pipeline.scene.datasets import GDAL_ERRORS, innermost_message
from pipeline.scene.describe import ground_pixel_m
from pipeline.scene.placement import Georeference, Warped, place
from pipeline.scene.raster import IGNORED, RasterScene
from pipeline.scene.sources import Part, SourcesScene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.scene.base import Scene

_NOMINAL = 0.01
"""Pixels whose length on the ground differs by less than this share from that in the CRS have the latter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridWish:
    """What a person says about the grid; all None: the scene's own."""

    crs: str | None = None
    """CRS of the grid, as written."""
    align: GeoBox | None = None
    """Exactly this grid."""
    resolution_m: float | None = None
    """Side of a pixel on the ground."""


def regrid(scene: Scene, wish: GridWish, *, resampling: str = "auto") -> Scene:
    """The scene on the grid wished for; the scene itself where that is its own.

    Args:
        scene: Any.
        wish: What is asked for.
        resampling: Kernel, or `auto`.

    Raises:
        UsageError: CF-012, the CRS is not understood.
        InputError: IN-055, the scene has no place from which the grid could be reached.
    """
    target = scene.geobox
    if wish.align is not None:
        _need_crs(scene, "--align")
        target = wish.align
    elif wish.crs is not None:
        _need_crs(scene, "--crs")
        wkt = wkt_of(parse_crs(wish.crs, option="--crs"))
        if not same_wkt(wkt, target.crs_wkt):
            target = grid_in(as_sources(scene).needed(), wkt)
    if wish.resolution_m is not None:
        pixel_m = pixel_size_m(target)
        if pixel_m is None:
            raise _no_place(scene, "--resolution in metres")
        target = rescaled(target, wish.resolution_m / pixel_m)
    if target == scene.geobox:
        return scene
    placed = as_sources(scene).on_grid(target, resampling=resampling, fixed=True)
    return replace(placed, own=scene.geobox)


def own_grid(scene: Scene) -> GeoBox | None:
    """The scene's own grid, where it is read on another one."""
    return getattr(getattr(scene, "scene", scene), "own", None)


def as_sources(scene: Scene) -> SourcesScene:
    """The scene as one that can be put on another grid."""
    if isinstance(scene, SourcesScene):
        return scene
    bands = tuple(dict.fromkeys(scene.bands))
    part = Part(scene=scene, numbers=tuple(band.index for band in scene.bands))
    made = SourcesScene(
        name=scene.name,
        path=getattr(scene, "path", None),
        kind="raster on another grid",
        parts=(part,),
        all_bands=bands,
        bands=scene.bands,
        geobox=scene.geobox,
        warnings=scene.warnings,
    )
    return made.on_grid(scene.geobox)


def pixel_size_m(geobox: GeoBox) -> float | None:
    """Side of a pixel in metres, at the middle; what the CRS says where the ground agrees within a hundredth."""
    sides = ground_pixel_m(geobox)
    if sides is None:
        return None
    ground = math.sqrt(sides[0] * sides[1])
    if not ground:  # beyond what PROJ can tell apart
        return None
    crs = CRS.from_wkt(geobox.crs_wkt) if geobox.crs_wkt else None
    if crs is not None and crs.is_projected:
        nominal = math.sqrt(geobox.pixel_area) * float(crs.linear_units_factor[1])
        if abs(nominal / ground - 1) < _NOMINAL:
            return nominal
    return ground


def rescaled(geobox: GeoBox, factor: float) -> GeoBox:
    """The same ground in pixels `factor` times as large, from the same corner; the last ones may reach beyond."""
    near = Fraction(factor).limit_denominator(1000)
    factor = float(near) if abs(float(near) / factor - 1) < 1e-6 else factor  # noqa: PLR2004 - rounding
    height, width = (max(1, math.ceil(n / factor - 1e-6)) for n in geobox.shape)
    return GeoBox(shape=(height, width), transform=geobox.transform @ Affine.scale(factor), crs_wkt=geobox.crs_wkt)


def warped_by_reference(
    scene: RasterScene, *, height_m: float | None, dem: str | None = None, assume_crs: str | None = None
) -> Scene | None:
    """A scene that only control points or RPCs place, on a grid in their CRS; None where it has neither.

    Args:
        scene: As it is stored.
        height_m: Of the ground, for RPCs; with `dem` what is added to its heights.
        dem: Raster of heights that a look has been taken at.
        assume_crs: Of control points whose CRS the file does not tell.

    Raises:
        InputError: IN-008, RPCs, and nobody said how high the ground lies; IN-062, `dem` has no heights there.
    """
    dataset = scene.dataset()
    points, crs = dataset.gcps
    crs = crs or (None if assume_crs is None else parse_crs(assume_crs))
    if points and crs:
        reference = Georeference(
            crs_wkt=wkt_of(crs), gcps=tuple((float(p.row), float(p.col), p.x, p.y, p.z or 0.0) for p in points)
        )
    elif dataset.rpcs is not None:
        if height_m is None and dem is None:
            raise InputError(
                f"{scene.name} is placed by rational polynomial coefficients, which need the height of the ground",
                code="IN-008",
                title="Rational polynomial coefficients only",
                where=scene.path,
                fix="add --rpc-height METRES above the ellipsoid, or in hilly country --rpc-dem FILE",
            )
        reference = Georeference(
            crs_wkt=wkt_of(CRS.from_epsg(4326)), rpcs=dataset.rpcs, height_m=height_m or 0.0, dem=dem
        )
    else:
        return None
    plain = replace(scene, warnings=tuple(text for text in scene.warnings if text != IGNORED))
    made = as_sources(plain)
    part = replace(made.parts[0], reference=reference)
    made = replace(made, parts=(part,), kind="raster placed by control points" if points else "raster placed by RPCs")
    share = 1.0 if dem is None else _share_with_heights(part, reference)
    if share < 1:
        text = f"{Path(dem or '').name} has heights for {share:.0%} of the scene only; the rest is left out."
        made = replace(made, warnings=(*made.warnings, text))
    return made.on_grid(grid_in([part], reference.crs_wkt))


def _share_with_heights(part: Part, reference: Georeference) -> float:
    """Share of places spread over a source for which its model of heights has some.

    Raises:
        InputError: IN-062, none.
    """
    flat = replace(reference, dem=None)
    box, own = grid_in([replace(part, reference=flat)], reference.crs_wkt), part.scene.geobox
    rows, cols = (np.linspace(0.5, n - 0.5, 32) for n in box.shape)
    places = [place(box, own, reference=one) for one in (flat, reference)]
    (down, along), (known, _) = (
        one.at(*np.broadcast_arrays(rows[:, None], cols[None, :])) for one in places if isinstance(one, Warped)
    )
    wanted = (down >= 0) & (down < own.height) & (along >= 0) & (along < own.width)
    covered = np.isfinite(known)
    if not (covered & wanted).any():
        raise InputError(
            f"{Path(reference.dem or '').name} has no heights where {part.scene.name} lies",
            code="IN-062",
            title="No heights",
            where=str(reference.dem),
            fix="give a model of heights that covers the scene; compare both on a map",
        )
    return float((covered & wanted).sum() / wanted.sum())


def grid_in(parts: Sequence[Part], wkt: str) -> GeoBox:
    """Grid of square pixels in a CRS that covers all parts, with pixels as fine as the finest one's."""
    boxes = [_default_grid(part, wkt) for part in parts]
    step = min(box.pixel_size[1] for box in boxes)
    corners = np.array([corner for box in boxes for corner in box.corners_xy()])
    left, bottom = (float(v) for v in corners.min(axis=0))
    right, top = (float(v) for v in corners.max(axis=0))
    shape = (max(1, math.ceil((top - bottom) / step - 1e-3)), max(1, math.ceil((right - left) / step - 1e-3)))
    return GeoBox(shape=shape, transform=Affine(step, 0, left, 0, -step, top), crs_wkt=wkt)


def _default_grid(part: Part, wkt: str) -> GeoBox:
    box, reference = part.scene.geobox, part.reference
    where: dict[str, Any]
    if reference is None:
        points = [
            GroundControlPoint(row=r, col=c, x=x, y=y, z=0.0)
            for (r, c) in ((0, 0), (0, box.width), (box.height, box.width), (box.height, 0))
            for x, y in [box.transform @ (c, r)]
        ]
        source = CRS.from_wkt(box.crs_wkt or "")
        plain = not box.transform.b and not box.transform.d and box.transform.e < 0
        left, top = box.transform @ (0, 0)
        right, bottom = box.transform @ (box.width, box.height)
        where = {"left": left, "bottom": bottom, "right": right, "top": top} if plain else {"gcps": points}
    else:
        source = CRS.from_wkt(reference.crs_wkt)
        where = (
            {"rpcs": reference.rpcs, **reference.rpc_options()}
            if reference.rpcs is not None
            else {"gcps": reference.control_points()}
        )
    try:
        transform, width, height = calculate_default_transform(
            source, CRS.from_wkt(wkt), box.width, box.height, **where
        )
    except GDAL_ERRORS as error:
        raise InputError(
            f"{part.scene.name} cannot be brought into the CRS that was asked for: {innermost_message(error)}",
            code="IN-055",
            title="Scene has no place in this CRS",
            where=getattr(part.scene, "path", None) or part.scene.name,
            fix="choose a CRS in which all of the scene has a place, or --align FILE",
        ) from error
    return GeoBox(shape=(int(height or 1), int(width or 1)), transform=transform, crs_wkt=wkt)


def _need_crs(scene: Scene, option: str) -> None:
    placed = isinstance(scene, SourcesScene) and all(part.reference is not None for part in scene.parts)
    if scene.geobox.crs_wkt is None and not placed:
        raise _no_place(scene, option)


def _no_place(scene: Scene, option: str) -> InputError:
    return InputError(
        f"{option} was given, and {scene.name} has no place on Earth from which it could be reached",
        code="IN-055",
        title="Scene has no place on Earth",
        where=getattr(scene, "path", None) or scene.name,
        fix="--assume-crs EPSG:xxxx if you know it; --warp-gcps for a scene with control points",
    )
