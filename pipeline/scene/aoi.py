"""Area of interest: polygons of a vector file as a mask on a scene's pixels, the same whatever the window."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
import shapely.errors
from affine import Affine
from pyproj.exceptions import CRSError
from rasterio.features import geometry_mask

from pipeline.errors import InputError
from pipeline.grid import Window
from pipeline.scene.datasets import without_georeference

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox

_BLOCK_PX = 512  # polygons are burned in blocks of this side that start at the scene's origin
_HEADS = (b"{", b"SQLite format 3\x00", b"fgb\x03", b"\x00\x00\x27\x0a")
"""GeoJSON, GeoPackage, FlatGeobuf, Shapefile. Others that GDAL knows may lead to any file or server: virtual ones, GML
by its schema, archives by what is in them."""
_DENSIFY_PARTS = 64  # edges are cut to this part of the polygons' extent before they are reprojected


@dataclass(frozen=True, slots=True, eq=False)
class Aoi:
    """Polygons in pixel coordinates of one scene; picklable. A pixel is inside when its centre is."""

    polygons: tuple[shapely.Polygon, ...]
    """Shapes in pixels: x = column, y = row, (0, 0) the outer corner of the upper left pixel."""
    shape: tuple[int, int]
    """(height, width) of the scene."""

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], geobox: GeoBox) -> Aoi:
        """Read the polygons of a GeoJSON, GeoPackage, FlatGeobuf or Shapefile, in any CRS, for a scene.

        Points and lines are left out. Polygons are densified before they are reprojected.

        Raises:
            InputError: IN-020 not found or not readable, IN-021 no polygons, IN-022 nothing inside the scene, IN-023
                the file has no CRS, IN-024 the scene has no CRS.
        """
        path = Path(path)
        geometries, crs = _read(path)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                shapes = _polygons(geometries, path)
                in_scene = _reproject(shapes, _crs_pair(crs, geobox, path))
        except shapely.errors.GEOSException as error:  # coordinates that are no place on any map
            raise _not_reprojectable(path, error) from error
        to_pixels = ~geobox.transform
        pixels = shapely.transform(in_scene, lambda xy: _apply(to_pixels, xy))
        box = shapely.box(0, 0, geobox.width, geobox.height)
        touching = [polygon for polygon in _only_polygons(pixels) if polygon.intersects(box)]
        if not touching:
            raise InputError(
                f"none of the {len(shapes)} polygons of {path.name} lies inside the scene",
                code="IN-022",
                title="Area of interest outside the scene",
                where=str(path),
                fix="compare both on a map; is the file's CRS what its coordinates are in?",
            )
        return cls(tuple(touching), geobox.shape)

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Shape `(y, x)`, True where the centre of a pixel is inside.

        Law: a window's mask equals that part of the whole scene's mask. Therefore polygons are burned in fixed blocks:
        a window's own origin would round edges that run through pixel centres this way or that.
        """
        inside = np.zeros(window.shape, bool)
        if not self.intersects(window):
            return inside
        for row in range(window.row_off // _BLOCK_PX, -(-window.row_stop // _BLOCK_PX)):
            for col in range(window.col_off // _BLOCK_PX, -(-window.col_stop // _BLOCK_PX)):
                block = Window(row_off=row * _BLOCK_PX, col_off=col * _BLOCK_PX, height=_BLOCK_PX, width=_BLOCK_PX)
                common = window.intersect(block)
                inside[common.slices_in(window)] = self._burn(block)[common.slices_in(block)]
        return inside

    def intersects(self, window: Window) -> bool:
        """Whether a polygon touches a window; False means that `mask` is False everywhere."""
        return bool(len(self._touching(window)))

    def digest(self) -> str:
        """BLAKE2b of the polygons as they lie on the scene's pixels, 128 bit."""
        digest = hashlib.blake2b(digest_size=16)
        for polygon in self.polygons:
            digest.update(shapely.to_wkb(shapely.normalize(polygon)))
        return digest.hexdigest()

    def _touching(self, window: Window) -> list[shapely.Polygon]:
        box = shapely.box(window.col_off, window.row_off, window.col_stop, window.row_stop)
        shapely.prepare(self.polygons)  # remembered by the polygons, so it costs nothing the second time
        touching = shapely.intersects(np.array(self.polygons, dtype=object), box)
        return [polygon for polygon, hit in zip(self.polygons, touching, strict=True) if hit]

    def _burn(self, block: Window) -> NDArray[np.bool_]:
        polygons = self._touching(block)
        if not polygons:
            return np.zeros(block.shape, bool)
        origin = Affine.translation(block.col_off, block.row_off)
        with without_georeference():  # the first block's origin looks like none
            burned: NDArray[np.bool_] = geometry_mask(polygons, out_shape=block.shape, transform=origin, invert=True)
        return burned


def _read(path: Path) -> tuple[NDArray[np.object_], str | None]:
    """Geometries and CRS of the first layer of a file that by its first bytes is one of a few formats."""
    import pyogrio  # noqa: PLC0415 - loads pandas
    from pyogrio.errors import DataLayerError, DataSourceError, GeometryError  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            head = file.read(512).removeprefix(b"\xef\xbb\xbf")
        if not head.startswith(_HEADS) and not head.lstrip().startswith(_HEADS[:1]):
            raise _unreadable(path, "it is none of GeoJSON, GeoPackage, FlatGeobuf and Shapefile")
        meta, _, wkb, _ = pyogrio.raw.read(path, layer=0, columns=[])
    except FileNotFoundError as error:
        raise _unreadable(path, "there is no such file") from error
    except IsADirectoryError as error:
        raise _unreadable(path, "it is a folder") from error
    except (DataSourceError, DataLayerError, GeometryError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    geometries = shapely.from_wkb(wkb, on_invalid="fix") if wkb is not None else np.empty(0, object)
    return geometries, meta["crs"]


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(
        f"the area of interest {path.name} cannot be read: {why}",
        code="IN-020",
        title="Area of interest not readable",
        where=str(path),
        fix="give a GeoJSON, GeoPackage, FlatGeobuf or Shapefile with polygons; ogr2ogr writes them",
    )


def _polygons(geometries: NDArray[np.object_], path: Path) -> list[shapely.Polygon]:
    shapes = _only_polygons(geometries)
    if not shapes:
        raise InputError(
            f"{path.name} has {len(geometries)} features and not one polygon among them",
            code="IN-021",
            title="No polygons in the area of interest",
            where=str(path),
            fix="draw the area as polygons; lines and points have no inside",
        )
    return shapes


def _only_polygons(geometries: Any) -> list[shapely.Polygon]:
    """Valid polygons, one by one, out of anything: collections taken apart, bow ties repaired, the rest dropped."""
    present = np.array([g for g in geometries if g is not None and not g.is_empty], dtype=object)
    if len(present) == 0:
        return []
    parts = shapely.get_parts(shapely.make_valid(shapely.get_parts(shapely.force_2d(present))))
    flat = shapely.get_parts(parts)  # make_valid may have put multipolygons into collections
    return [p for p in flat if isinstance(p, shapely.Polygon) and not p.is_empty]


def _crs_pair(crs: str | None, geobox: GeoBox, path: Path) -> tuple[pyproj.CRS, pyproj.CRS]:
    if geobox.crs_wkt is None:
        raise InputError(
            "the scene has no CRS, so an area of interest cannot be laid over it",
            code="IN-024",
            title="Scene without CRS and area of interest",
            where=str(path),
            fix="give the scene's CRS with --assume-crs",
        )
    if not crs:
        raise InputError(
            f"{path.name} has no CRS; its coordinates could mean any place",
            code="IN-023",
            title="Area of interest without CRS",
            where=str(path),
            fix=f"ogr2ogr -a_srs EPSG:xxxx aoi.gpkg '{path.name}'",
        )
    try:
        return pyproj.CRS.from_user_input(crs), pyproj.CRS.from_wkt(geobox.crs_wkt)
    except CRSError as error:
        raise _not_reprojectable(path, error) from error


def _not_reprojectable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path.name} cannot be brought into the scene's CRS: {error}",
        code="IN-023",
        title="Area of interest without CRS",
        where=str(path),
        fix="write the file in the scene's CRS with ogr2ogr -t_srs",
    )


def _reproject(shapes: list[shapely.Polygon], pair: tuple[pyproj.CRS, pyproj.CRS]) -> NDArray[np.object_]:
    """The shapes in the scene's CRS; straight edges become curves there, so they get vertices on the way."""
    source, target = pair
    polygons = np.array(shapes, dtype=object)
    if source.equals(target, ignore_axis_order=True):
        return polygons
    x0, y0, x1, y1 = shapely.total_bounds(polygons)
    dense = shapely.segmentize(polygons, max(x1 - x0, y1 - y0) / _DENSIFY_PARTS)
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    moved = shapely.transform(dense, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1])))
    finite = [np.isfinite(shapely.get_coordinates(p)).all() for p in moved]
    kept: NDArray[np.object_] = np.asarray(moved, dtype=object)[np.array(finite, bool)]
    return kept


def _apply(transform: Affine, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = xy.T
    t = transform
    return np.column_stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f])
