"""The polygons of one mask: where they lie, what they are called, and batches of them in canonical order."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Self

import geopandas
import numpy as np
import pyarrow as pa
import shapely

from pipeline.vector.attributes import attribute_arrays, attribute_fields
from pipeline.vector.lengths import PixelSides
from pipeline.vector.rings import from_shapely
from pipeline.vector.spool import SpoolReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.grid import GeoBox
    from pipeline.vector.area import PixelAreas
    from pipeline.vector.regularize import Outcome
    from pipeline.vector.rings import Geometries, Rings
    from pipeline.vector.spool import PolygonBatch

_BATCH_ROWS = 16384
_BATCH_BYTES = 16 << 20


class PolygonSet:
    """Polygons on disk, in canonical order; a context manager that removes its spool at the end.

    Two sets of equal masks are equal, whatever the tiling.
    """

    def __init__(
        self,
        folder: Path,
        *,
        spool: Path,
        geobox: GeoBox,
        names: Mapping[int, str],
        areas: PixelAreas | None,
        on_grid: bool = True,
        scene: str | None = None,
        probability_steps: int | None = None,
        multi: bool = False,
        regularized: Outcome | None = None,
    ) -> None:
        self._folder = folder
        self._reader = SpoolReader(spool)
        self._names = dict(names)
        self._areas = areas
        self.geobox = geobox
        """Grid and CRS of the mask."""
        self.on_grid = on_grid
        """Whether all edges follow those of pixels."""
        self.scene = scene
        """What the mask was made of: the scene where the mask tells, else its own name; None for several."""
        self.probability_steps = probability_steps
        """Stored value that means a probability of 1; None where no probabilities were kept."""
        self.multi = multi
        """Whether all geometries are multi-polygons, of parts that touch at corners."""
        self.regularized = regularized
        """How many polygons have straight walls; None where that was not asked for."""
        self._sides = PixelSides.of(geobox)
        self.before_batch: Callable[[], object] = lambda: None
        """Called before each batch; may raise, so that a long writing can be stopped."""
        self.colors: Mapping[int, tuple[int, int, int]] = {}
        """Class value -> red, green, blue, for formats that hold a style; empty where the mask has no legend."""

    def __len__(self) -> int:
        return len(self._reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the spool; the set cannot be read any more."""
        self._reader.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def num_polygons(self) -> int:
        """Polygons in the set."""
        return len(self)

    @property
    def has_area_m2(self) -> bool:
        """False without a CRS that is tied to the Earth."""
        return self._areas is not None

    @property
    def pixels_by_class(self) -> dict[int, int]:
        """Pixels inside the polygons, by class."""
        return self._sum_by_class("area_px")

    @property
    def area_m2_by_class(self) -> dict[int, float] | None:
        """Geodesic area of the polygons in m², by class; None without a CRS that is tied to the Earth."""
        if self._areas is None:
            return None
        unit = self._areas.unit_m2
        return {value: units * unit for value, units in self._sum_by_class("area_units").items()}

    def class_name(self, value: int) -> str:
        """Name of a class; `class_<value>` where none was given."""
        return self._names.get(value, f"class_{value}")

    def area_m2(self, batch: PolygonBatch) -> NDArray[np.float64] | None:
        """Geodesic area of each polygon of a batch in m², shape (polygon,); None without a CRS tied to the Earth."""
        return None if self._areas is None else np.round(self._areas.to_m2(batch.area_units), 4)

    def perimeter_m(self, batch: PolygonBatch) -> NDArray[np.float64] | None:
        """Length of each outline as it is written, holes included, on the ellipsoid, in metres; None without a CRS."""
        if self._sides is None:
            return None
        if not self.multi:
            return np.round(self._sides.perimeter_m(from_shapely(batch.polygons)), 2)
        parts, owner = shapely.get_parts(batch.polygons, return_index=True)
        return np.round(np.bincount(owner, self._sides.perimeter_m(from_shapely(parts)), len(batch)), 2)

    def in_crs(self, batch: PolygonBatch) -> Geometries:
        """The batch's polygons in CRS coordinates (x, y), exteriors counter-clockwise, shape (polygon,)."""
        t = self.geobox.transform

        def place(rings: Rings) -> Geometries:
            x, y = rings.coords.T
            coords = np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=1)
            return np.asarray(shapely.orient_polygons(rings.to_shapely(coords), exterior_cw=False))

        return self.each_part(batch, place)

    def each_part(self, batch: PolygonBatch, place: Callable[[Rings], Geometries]) -> Geometries:
        """What `place` makes of a batch's polygons, shape (polygon,); part by part where they have several.

        `place` may give None for what vanishes, and several polygons for one.
        """
        if not self.multi:
            return place(from_shapely(batch.polygons))
        parts, owner = shapely.get_parts(batch.polygons, return_index=True)
        placed, piece = shapely.get_parts(place(from_shapely(parts)), return_index=True)
        whole = np.full(len(batch), None, object)
        return np.asarray(shapely.multipolygons(placed, indices=owner[piece], out=whole))

    def iter_batches(self, max_rows: int = _BATCH_ROWS, *, along_curve: bool = False) -> Iterator[PolygonBatch]:
        """Batches in canonical order, in pixel coordinates, of at most `max_rows` polygons.

        Args:
            max_rows: Most polygons of a batch.
            along_curve: In the order of first pixels along a Hilbert curve instead, so that a batch lies together.
        """
        order = self._reader.along_curve(self.geobox.shape) if along_curve else None
        batches = self._reader.iter_batches(max_rows=max_rows, max_bytes=_BATCH_BYTES, order=order)
        while True:
            self.before_batch()
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _sum_by_class(self, column: str) -> dict[int, int]:
        classes, index = np.unique(self._reader.column("class_id"), return_inverse=True)
        sums = np.zeros(len(classes), np.int64)
        np.add.at(sums, index, self._reader.column(column))
        return dict(zip(classes.tolist(), sums.tolist(), strict=True))


def to_geodataframe(polygons: PolygonSet) -> geopandas.GeoDataFrame:
    """All polygons in memory, in the scene's CRS, with the columns that files have."""
    batches = list(polygons.iter_batches())
    geometry = np.concatenate([np.empty(0, object), *(polygons.in_crs(b) for b in batches)])
    schema = pa.schema(attribute_fields(polygons))
    tables = [pa.record_batch(attribute_arrays(polygons, b), schema=schema) for b in batches]
    frame = pa.Table.from_batches(tables, schema).to_pandas()
    return geopandas.GeoDataFrame(frame, geometry=geometry, crs=polygons.geobox.crs_wkt)
