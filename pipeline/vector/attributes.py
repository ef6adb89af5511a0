"""What each polygon of a file is told: one place for all formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.vector.polygonset import PolygonSet
    from pipeline.vector.spool import PolygonBatch

_ALWAYS = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("class_id", pa.int32(), nullable=False),
    pa.field("class_name", pa.string(), nullable=False),
    pa.field("area_m2", pa.float64()),
    pa.field("area_px", pa.int64(), nullable=False),
    pa.field("perimeter_m", pa.float64()),
    pa.field("touches_border", pa.bool_(), nullable=False),
    pa.field("touches_nodata", pa.bool_(), nullable=False),
    pa.field("scene", pa.string()),
]
_WITH_PROBABILITIES = [
    pa.field("p_mean", pa.float64(), nullable=False),
    pa.field("p_min", pa.float64(), nullable=False),
    pa.field("uncertain_frac", pa.float64(), nullable=False),
]


def attribute_fields(polygons: PolygonSet) -> list[pa.Field]:
    """Columns of a set, without its geometries.

    Probabilities are there where they were kept: mean and minimum over the polygon's pixels of the probability of the
    class that each pixel has, and the share of its pixels that are uncertain (`facts.UNSURE_BELOW`).
    """
    return [*_ALWAYS, *(_WITH_PROBABILITIES if polygons.probability_steps else [])]


def attribute_arrays(polygons: PolygonSet, batch: PolygonBatch) -> list[pa.Array]:
    """Values of `attribute_fields` for a batch."""
    fields = attribute_fields(polygons)
    columns = _columns(polygons, batch)
    return [pa.array(columns[field.name], field.type, from_pandas=True) for field in fields]  # NaN is null


def _columns(polygons: PolygonSet, batch: PolygonBatch) -> dict[str, Any]:
    nothing = [None] * len(batch)
    areas, perimeters = polygons.area_m2(batch), polygons.perimeter_m(batch)
    pixels, steps = np.maximum(batch.area_px - batch.filled_px, 1), polygons.probability_steps or 1
    return {
        "id": batch.ids,
        "class_id": batch.class_ids,
        "class_name": [polygons.class_name(v) for v in batch.class_ids.tolist()],
        "area_m2": nothing if areas is None else areas,
        "area_px": batch.area_px,
        "perimeter_m": nothing if perimeters is None else perimeters,
        "touches_border": batch.touches_border,
        "touches_nodata": batch.touches_nodata,
        "scene": [polygons.scene] * len(batch),
        "p_mean": np.round(batch.steps_sum / pixels / steps, 4),
        "p_min": batch.steps_min / steps,
        "uncertain_frac": np.round(batch.unsure_px / pixels, 4),
    }
