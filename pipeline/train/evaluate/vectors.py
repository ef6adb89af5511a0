"""Vector files laid over PRED: features of rows of pixels, in pixel coordinates, in the file's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pyproj
import shapely
from pyogrio.errors import DataLayerError, DataSourceError, GeometryError
from pyproj.exceptions import CRSError, ProjError

from pipeline.train.evaluate.faults import no_crs, unclear, unusable_truth
from pipeline.train.evaluate.rasters import head_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox

_PARTS = 1024  # edges are cut to this part of PRED's extent before they are reprojected
_OGR_ERRORS = (DataSourceError, DataLayerError, GeometryError, OSError)
_VIRTUAL = (b"<OGRVRTDataSource", b"<OGRVRT")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Some features of a file."""

    shapes: NDArray[np.object_]
    """Shapely geometries, x = column and y = row of PRED's pixels."""
    columns: dict[str, NDArray[Any]]
    """Attributes."""


class VectorFile:
    """A layer of any format that GDAL knows.

    Args:
        path: The file.
        geobox: Of PRED.
        layer: Its name; the first, and only, one if not given.

    Raises:
        InputError: IN-001 or IN-003 no such file; EV-002 not readable; EV-004 only one of them has a CRS.
        UsageError: EV-006, several layers.
    """

    def __init__(self, path: Path, geobox: GeoBox, *, layer: str | None = None) -> None:
        self.path = path
        self._geobox = geobox
        head = head_of(path) if path.is_file() or not path.exists() else b""  # a file geodatabase is a folder
        if head.lstrip().startswith(_VIRTUAL):
            raise unusable_truth(f"{path.name} is a GDAL virtual file, which could point to any file or server", path)
        try:
            self.layer = layer or _only_layer(path)
            info = pyogrio.read_info(path, layer=self.layer, force_feature_count=True)
        except _OGR_ERRORS as error:
            raise unusable_truth(f"{path.name} is no raster, and cannot be read as polygons: {error}", path) from error
        self.fields: list[str] = list(info["fields"])
        self.count = int(info["features"])
        self._pair = _crs_pair(info["crs"], geobox, path)
        self._edge = self._edge_length()

    def check_field(self, name: str, option: str) -> str:
        """An attribute that the file has.

        Raises:
            UsageError: EV-006, it has none of this name.
        """
        if name not in self.fields:
            fields = ", ".join(self.fields) or "none"
            raise unclear(f"{option} {name}: {self.path.name} has the attributes {fields}", fix="use one of these")
        return name

    def rows(self, start: int, stop: int, columns: list[str]) -> Features:
        """Features that may touch rows `start` to `stop` of PRED, in the file's order.

        Raises:
            InputError: EV-002, they cannot be read.
        """
        try:
            meta, fids, wkb, fields = pyogrio.raw.read(
                self.path, layer=self.layer, columns=columns, bbox=self._bounds(start, stop), return_fids=True
            )
        except _OGR_ERRORS as error:
            raise unusable_truth(f"{self.path.name} cannot be read: {error}", self.path) from error
        order = np.argsort(fids, kind="stable")  # a spatial index has an order of its own
        shapes = np.asarray(shapely.force_2d(shapely.from_wkb(wkb, on_invalid="ignore")), object)[order]
        attributes = {name: np.asarray(f, object)[order] for name, f in zip(meta["fields"], fields, strict=True)}
        present = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
        moved = self._to_pixels(shapes[present])
        finite = np.isfinite(shapely.bounds(moved)).all(axis=1) if len(moved) else np.zeros(0, bool)
        return Features(moved[finite], {k: v[present][finite] for k, v in attributes.items()})

    def all_rows(self, columns: list[str]) -> Features:
        """All features that may touch PRED."""
        return self.rows(0, self._geobox.height, columns)

    def _bounds(self, start: int, stop: int) -> tuple[float, float, float, float]:
        """Bounds of rows in the file's CRS, a little too large."""
        t, width = self._geobox.transform, self._geobox.width
        corners = [t @ (float(c), float(r)) for c in (-1, width + 1) for r in (start - 1, stop + 1)]
        (x0, y0), (x1, y1) = np.min(corners, axis=0), np.max(corners, axis=0)
        if self._pair is None:
            return float(x0), float(y0), float(x1), float(y1)
        file, pred = self._pair
        bounds = pyproj.Transformer.from_crs(pred, file, always_xy=True).transform_bounds(
            x0, y0, x1, y1, densify_pts=51
        )
        if not np.isfinite(bounds).all() or bounds[0] > bounds[2]:  # PRED crosses the antimeridian, or leaves the CRS
            return -1e300, -1e300, 1e300, 1e300
        margin = max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / _PARTS
        return bounds[0] - margin, bounds[1] - margin, bounds[2] + margin, bounds[3] + margin

    def _edge_length(self) -> float:
        x0, y0, x1, y1 = self._bounds(0, self._geobox.height)
        return max(x1 - x0, y1 - y0) / _PARTS

    def _to_pixels(self, shapes: NDArray[np.object_]) -> NDArray[np.object_]:
        """In pixel coordinates; straight edges become curves in another CRS, so they get vertices on the way."""
        back = ~self._geobox.transform
        moved = shapes
        if self._pair is not None:
            transformer = pyproj.Transformer.from_crs(*self._pair, always_xy=True)
            dense = shapely.segmentize(shapes, self._edge)
            moved = shapely.transform(dense, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1])))
        linear, shift = np.array([[back.a, back.b], [back.d, back.e]]), (back.c, back.f)
        return np.asarray(shapely.transform(moved, lambda xy: xy @ linear.T + shift), object)


def _only_layer(path: Path) -> str:
    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if len(layers) != 1:
        names = ", ".join(layers) or "none"
        raise unclear(f"{path.name} has {len(layers)} layers with geometries: {names}", fix="choose one with --layer")
    return layers[0]


def _crs_pair(crs: str | None, geobox: GeoBox, path: Path) -> tuple[pyproj.CRS, pyproj.CRS] | None:
    """The file's CRS and PRED's; None where they are the same, or both have none."""
    if crs is None and geobox.crs_wkt is None:
        return None
    if crs is None or geobox.crs_wkt is None:
        lacking, other = ("TRUTH", "PRED") if crs is None else ("PRED", "TRUTH")
        raise no_crs(f"{lacking} has no CRS, and {other} has one", path)
    try:
        file, pred = pyproj.CRS.from_user_input(crs), pyproj.CRS.from_wkt(geobox.crs_wkt)
        pyproj.Transformer.from_crs(file, pred, always_xy=True)
    except (CRSError, ProjError) as error:
        raise no_crs(f"TRUTH's CRS cannot be brought into PRED's: {error}", path) from error
    return None if file.equals(pred, ignore_axis_order=True) else (file, pred)
