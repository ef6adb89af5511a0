"""What is known about a scene: class values on its pixels, from a raster or from polygons, window by window.

Polygons are burnt by the rule that GDAL has too: a pixel belongs to the polygon that holds its centre, later ones on
top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyogrio
import pyproj
import rasterio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from pipeline.errors import InputError, UsageError
from pipeline.grid import GeoBox, Window
from pipeline.quantities import unknown_key
from pipeline.scene.datasets import GDAL_ERRORS, innermost_message, without_georeference
from pipeline.scene.magic import HEAD_BYTES, driver_of
from pipeline.train.burn import burn
from pipeline.train.settings import NOT_LEARNT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from affine import Affine
    from numpy.typing import NDArray

    from pipeline.legend import Legend
    from pipeline.train.settings import LabelledScene

IGNORE = 65535
"""Value of pixels that nothing is known about; loss and metrics skip them."""
_BLOCK_PX = 512  # polygons are burnt in blocks that start at the scene's origin: a window never changes an edge
_DENSIFY_PARTS = 64
_SHOWN = 8


class Target(Protocol):
    """Class values on a grid."""

    def read(self, window: Window) -> NDArray[np.uint16]:
        """`(y, x)` class values of a window inside the grid; `IGNORE` where nothing is known."""
        ...


def open_target(labels: LabelledScene, geobox: GeoBox, legend: Legend) -> Target:
    """The labels of a scene on its pixels.

    Args:
        labels: Where they are, and what their values mean.
        geobox: Of the scene.
        legend: The classes.

    Raises:
        InputError: TR-001 the file cannot be read, TR-002 labels and scene do not meet, TR-003 no CRS to compare them
            in, TR-004 values that are no class.
        UsageError: TR-005 it is not said what polygons mean.
    """
    _require_file(labels.labels)
    if _is_raster(labels.labels):
        return _open_raster(labels, geobox, [info.name for info in legend])
    return _open_polygons(labels, geobox, legend)


@dataclass(frozen=True, slots=True, eq=False)
class RasterTarget:
    """Labels as a raster on the scene's pixels, or warped to them by nearest neighbour."""

    path: Path
    driver: str
    geobox: GeoBox
    codes: dict[int, int]
    """Value in the file -> class value, `IGNORE` for what is not to be learnt from."""
    warped: bool

    def read(self, window: Window) -> NDArray[np.uint16]:
        """See `Target`."""
        where = rasterio.windows.Window(window.col_off, window.row_off, window.width, window.height)
        with without_georeference(), rasterio.open(self.path, driver=self.driver) as dataset:
            if not self.warped:
                stored, known = dataset.read(1, window=where), dataset.read_masks(1, window=where)
            else:
                with self._on_scene(dataset) as vrt:
                    stored, known = vrt.read(1, window=where), vrt.read_masks(1, window=where)
        return self._classes(stored, known != 0)

    def _on_scene(self, dataset: Any) -> WarpedVRT:
        return WarpedVRT(
            dataset,
            crs=self.geobox.crs_wkt,
            transform=self.geobox.transform,
            height=self.geobox.height,
            width=self.geobox.width,
            resampling=Resampling.nearest,
            add_alpha=dataset.nodata is None,
        )

    def _classes(self, stored: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[np.uint16]:
        classes = np.full(stored.shape, IGNORE, np.uint16)
        found, places = np.unique(stored[known], return_inverse=True)
        table = np.array([self._code(value) for value in found], np.uint16)
        if len(found):
            classes[known] = table[places]
        return classes

    def _code(self, value: Any) -> int:
        if not np.isfinite(value):
            return IGNORE
        code = self.codes.get(int(value)) if float(value).is_integer() else None
        if code is None:
            raise InputError(
                f"{self.path.name} holds the value {value}, which is no class; known are {_some(self.codes)}",
                code="TR-004",
                title="Label outside the classes",
                where=str(self.path),
                fix="name its class under `values`, or write `null` there if it is not to be learnt from",
            )
        return code


@dataclass(frozen=True, slots=True, eq=False)
class PolygonTarget:
    """Labels as polygons in the scene's pixels."""

    polygons: NDArray[np.object_]
    """Shapes in pixel coordinates, x = column, y = row."""
    codes: NDArray[np.uint16]
    """Class value per polygon."""
    unlabelled: int
    """Value of pixels in no polygon."""
    tree: shapely.STRtree

    def read(self, window: Window) -> NDArray[np.uint16]:
        """See `Target`."""
        classes = np.full(window.shape, self.unlabelled, np.uint16)
        for row in range(window.row_off // _BLOCK_PX, -(-window.row_stop // _BLOCK_PX)):
            for col in range(window.col_off // _BLOCK_PX, -(-window.col_stop // _BLOCK_PX)):
                block = Window(row_off=row * _BLOCK_PX, col_off=col * _BLOCK_PX, height=_BLOCK_PX, width=_BLOCK_PX)
                common = window.intersect(block)
                classes[common.slices_in(window)] = self._burn(block)[common.slices_in(block)]
        return classes

    def _burn(self, block: Window) -> NDArray[np.uint16]:
        box = shapely.box(block.col_off, block.row_off, block.col_stop, block.row_stop)
        hits = np.sort(self.tree.query(box))
        if not len(hits):
            return np.full(block.shape, self.unlabelled, np.uint16)
        return burn(self.polygons[hits], self.codes[hits], block, fill=self.unlabelled, dtype="uint16")


def _open_raster(labels: LabelledScene, geobox: GeoBox, class_names: Sequence[str]) -> RasterTarget:
    path, driver = labels.labels, _driver(labels.labels)
    try:
        with without_georeference(), rasterio.open(path, driver=driver) as dataset:
            shape, transform, crs = (dataset.height, dataset.width), dataset.transform, dataset.crs
    except GDAL_ERRORS as error:
        raise _unreadable(path, innermost_message(error)) from error
    same_place = shape == geobox.shape and (
        crs is None or geobox.crs_wkt is None or _almost(transform, geobox.transform, geobox.shape)
    )
    if not same_place and (crs is None or geobox.crs_wkt is None):
        raise InputError(
            f"{path.name} has {shape[1]} x {shape[0]} pixels and the scene {geobox.width} x {geobox.height}, and one of"
            " them has no CRS, so they cannot be laid over each other",
            code="TR-003",
            title="Labels without CRS",
            where=str(path),
            fix="give labels of the scene's size, or write the CRS into both files",
        )
    if not same_place:
        _require_overlap(_bounds(shape, transform, crs, geobox), geobox, path)
    return RasterTarget(path, driver, geobox, _raster_codes(labels, class_names), warped=not same_place)


def _raster_codes(labels: LabelledScene, class_names: Sequence[str]) -> dict[int, int]:
    codes = {} if labels.values else {i: i for i in range(len(class_names))}
    for text, name in labels.values.items():
        if not text.lstrip("-").isdecimal():
            raise UsageError(
                f"values: {text!r} is no value of a raster, expected a whole number",
                code="TR-005",
                title="Meaning of labels not clear",
                where=str(labels.labels),
                fix="write for example `values: {1: building}`",
            )
        codes[int(text)] = IGNORE if name is None else class_names.index(name)
    return codes


def _open_polygons(labels: LabelledScene, geobox: GeoBox, legend: Legend) -> PolygonTarget:
    path, class_names = labels.labels, [info.name for info in legend]
    geometries, values, crs = _read_polygons(path, labels.attribute)
    if geobox.crs_wkt is None or not crs:
        whose = "the scene" if geobox.crs_wkt is None else path.name
        raise InputError(
            f"{whose} has no CRS, so the polygons cannot be laid over the scene",
            code="TR-003",
            title="Labels without CRS",
            where=str(path),
            fix="write the CRS into the file, or give `assume_crs` for the scene",
        )
    codes = _polygon_codes(labels, values, len(geometries), class_names)
    pixels = to_pixels(geometries, crs, geobox)
    _require_overlap(tuple(shapely.total_bounds(pixels)), geobox, path)
    return PolygonTarget(pixels, codes, _unlabelled(labels, legend), shapely.STRtree(pixels))


def _polygon_codes(
    labels: LabelledScene, values: NDArray[Any] | None, count: int, class_names: Sequence[str]
) -> NDArray[np.uint16]:
    if values is None:
        if labels.label_class is None:
            raise UsageError(
                "it is not said which class the polygons are",
                code="TR-005",
                title="Meaning of labels not clear",
                where=str(labels.labels),
                fix="give `label_class: NAME` for all of them, or `attribute: NAME` of what holds the class",
            )
        return np.full(count, class_names.index(labels.label_class), np.uint16)
    texts = [_text(value) for value in values]
    known: dict[str, int] = {name: i for i, name in enumerate(class_names)}
    known |= {str(i): i for i in range(len(class_names)) if str(i) not in known}
    known |= {text: IGNORE if name is None else class_names.index(name) for text, name in labels.values.items()}
    unknown = sorted({text for text in texts if text not in known})
    if unknown:
        raise InputError(
            f"the attribute {labels.attribute!r} of {labels.labels.name} holds {_some(unknown)}, which are no classes; "
            f"known are {_some(known)}",
            code="TR-004",
            title="Label outside the classes",
            where=str(labels.labels),
            fix="name their classes under `values`, or write `null` there if they are not to be learnt from",
        )
    return np.array([known[text] for text in texts], np.uint16)


def _unlabelled(labels: LabelledScene, legend: Legend) -> int:
    if labels.unlabelled is None:
        return IGNORE if legend.background is None else legend.background
    if labels.unlabelled == NOT_LEARNT:
        return IGNORE
    return next(info.value for info in legend if info.name == labels.unlabelled)


def _read_polygons(path: Path, attribute: str | None) -> tuple[NDArray[np.object_], NDArray[Any] | None, str | None]:
    """Polygons, the attribute's values and the CRS of a file's first layer."""
    try:
        with path.open("rb") as file:
            if file.read(512).lstrip().startswith(b"<OGRVRTDataSource"):
                raise _unreadable(path, "it is a GDAL virtual file, which could point to any file or server")
        fields = list(pyogrio.read_info(path, layer=0)["fields"])
        if attribute is not None and attribute not in fields:
            raise InputError(
                f"{path.name} has no attribute {attribute!r}: {unknown_key(attribute, fields)}; it has {_some(fields)}",
                code="TR-001",
                title="Labels cannot be read",
                where=str(path),
                fix="give `attribute` as it is in the file",
            )
        meta, _, wkb, columns = pyogrio.raw.read(path, layer=0, columns=[attribute] if attribute else [])
    except (DataSourceError, DataLayerError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    geometries = shapely.from_wkb(wkb) if wkb is not None else np.empty(0, object)
    kept = np.array([_is_area(g) for g in geometries], bool)
    if not kept.any():
        raise InputError(
            f"{path.name} has {len(geometries)} features and not one polygon among them",
            code="TR-001",
            title="Labels cannot be read",
            where=str(path),
            fix="draw labels as polygons, or give them as a raster",
        )
    shapes = np.array([shapely.make_valid(shapely.force_2d(g)) for g in geometries[kept]], dtype=object)
    return shapes, None if attribute is None else columns[0][kept], meta["crs"]


def _is_area(geometry: Any) -> bool:
    return geometry is not None and not geometry.is_empty and "Polygon" in geometry.geom_type


def to_pixels(shapes: NDArray[np.object_], crs: str, geobox: GeoBox) -> NDArray[np.object_]:
    """Shapes in the pixels of a geobox that has a CRS: x = column, y = row, (0, 0) the outer upper left corner."""
    assert geobox.crs_wkt is not None
    transform = ~geobox.transform
    in_scene = _reproject(shapes, crs, geobox.crs_wkt)
    moved: NDArray[np.object_] = shapely.transform(in_scene, lambda xy: _apply(transform, xy))
    return moved


def _reproject(shapes: NDArray[np.object_], source: str, target: str) -> NDArray[np.object_]:
    one, other = pyproj.CRS.from_user_input(source), pyproj.CRS.from_wkt(target)
    if one.equals(other, ignore_axis_order=True):
        return shapes
    x0, y0, x1, y1 = shapely.total_bounds(shapes)
    dense = shapely.segmentize(shapes, max(x1 - x0, y1 - y0) / _DENSIFY_PARTS)
    transformer = pyproj.Transformer.from_crs(one, other, always_xy=True)
    moved: NDArray[np.object_] = shapely.transform(
        dense, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))
    )
    return moved


def _apply(transform: Affine, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = xy.T
    t = transform
    return np.column_stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f])


def _bounds(shape: tuple[int, int], transform: Affine, crs: Any, geobox: GeoBox) -> tuple[float, float, float, float]:
    """Outer bounds of a raster in the scene's pixels."""
    box = GeoBox(shape=shape, transform=transform, crs_wkt=crs.to_wkt())
    ring = np.array([shapely.Polygon(box.corners_xy())], dtype=object)
    x0, y0, x1, y1 = shapely.total_bounds(to_pixels(ring, box.crs_wkt or "", geobox))
    return float(x0), float(y0), float(x1), float(y1)


def _require_overlap(bounds: tuple[float, ...], geobox: GeoBox, path: Path) -> None:
    x0, y0, x1, y1 = bounds
    if x0 < geobox.width and y0 < geobox.height and x1 > 0 and y1 > 0:
        return
    raise InputError(
        f"{path.name} lies outside the scene: in its pixels, columns {x0:.0f} to {x1:.0f} and rows {y0:.0f} to {y1:.0f}"
        f", the scene has {geobox.width} x {geobox.height}",
        code="TR-002",
        title="Labels outside the scene",
        where=str(path),
        fix="compare both on a map; is the file's CRS what its coordinates are in?",
    )


def _almost(one: Affine, other: Affine, shape: tuple[int, int]) -> bool:
    """Whether two grids agree to a hundredth of a pixel in all corners."""
    height, width = shape
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    offsets = [np.subtract(~other @ (one @ corner), corner) for corner in corners]
    return bool(np.abs(offsets).max() < 0.01)  # noqa: PLR2004


def _is_raster(path: Path) -> bool:
    try:
        _driver(path)
    except InputError:
        return False
    return True


def _driver(path: Path) -> str:
    with path.open("rb") as file:
        return driver_of(file.read(HEAD_BYTES), path)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise _unreadable(path, "it is a folder" if path.is_dir() else "there is no such file")


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(
        f"the labels {path.name} cannot be read: {why}",
        code="TR-001",
        title="Labels cannot be read",
        where=str(path),
        fix="give a raster of class values, or polygons of any OGR format",
    )


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _some(values: Mapping[Any, Any] | Sequence[Any]) -> str:
    shown = ", ".join(str(value) for value in list(values)[:_SHOWN])
    return shown + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")
