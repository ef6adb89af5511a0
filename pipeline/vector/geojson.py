"""GeoJSON as RFC 7946 has it, one feature a line, written in batches.

WGS 84 longitude and latitude, 7 decimals, exteriors counter-clockwise, polygons cut at the antimeridian, no `crs`.
A mask without a CRS cannot be placed on Earth: its file holds coordinates of the mask's own transform, and says so in
the foreign members `scenemask:crs` (null) and `scenemask:crs_note`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import shapely

from pipeline.vector.attributes import attribute_arrays, attribute_fields
from pipeline.vector.densify import densify, densify_slanting, measure_spacing
from pipeline.vector.lonlat import ToLonLat, is_on_earth, to_lonlat_polygons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from pipeline.vector.polygonset import PolygonSet
    from pipeline.vector.rings import Geometries, Rings
    from pipeline.vector.spool import PolygonBatch

_NOTE = "not RFC 7946: the mask has no CRS on Earth, so coordinates are those of its own transform (x, y)"
_FEATURE = '{"type":"Feature"'
_TAIL = "\n]}\n"
_LONG_FRACTION = re.compile(r"\.\d{8,}")
_SAFE_PIXEL_DEG = 2e-6
"""Pixels at least this large, twenty times the last decimal, stay apart when rounded."""


def write_geojson(polygons: PolygonSet, path: Path) -> int:
    """Write a feature collection; returns how many polygons vanished in rounding or lay off the Earth."""
    dropped = 0
    on_earth = is_on_earth(polygons.geobox.crs_wkt)
    place, tidy = (_lonlat(polygons), _seven_decimals) if on_earth else (polygons.in_crs, str)
    head = "" if on_earth else f'"scenemask:crs":null,"scenemask:crs_note":"{_NOTE}",'
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"type":"FeatureCollection",{head}"features":[')
        separator = "\n"
        for batch in polygons.iter_batches():
            for feature in _features(polygons, batch, place(batch), tidy):
                if not feature:
                    dropped += 1
                    continue
                file.write(separator + feature)
                separator = ",\n"
        file.write(_TAIL)
    return dropped


def count_features(path: Path) -> int:
    """Features in a file of ours; -1 if it does not end as it should."""
    count, line = 0, ""
    with path.open(encoding="utf-8") as file:
        for line in file:
            count += line.startswith(_FEATURE)
    return count if line == _TAIL.lstrip() else -1


def _lonlat(polygons: PolygonSet) -> Callable[[PolygonBatch], Geometries]:
    """Function that gives a batch's polygons in longitude and latitude, None for those that vanish."""
    place = ToLonLat(polygons.geobox)
    spacing = measure_spacing(place, slanting=not polygons.on_grid)
    check = not polygons.on_grid or spacing.per_cell is not None or _smallest_pixel_deg(place) < _SAFE_PIXEL_DEG
    with_points = densify if polygons.on_grid else densify_slanting

    def to_lonlat(rings: Rings) -> Geometries:
        return to_lonlat_polygons(with_points(rings, spacing), place, check=check)

    return lambda batch: polygons.each_part(batch, to_lonlat)


def _smallest_pixel_deg(place: ToLonLat) -> float:
    """Smallest width of a pixel in the plane of longitude and latitude, in degrees, on a sample of the scene."""
    height, width = place.geobox.shape
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9)))
    here, right, below = (np.stack(place.forward(x + dx, y + dy), -1) for dx, dy in ((0, 0), (1, 0), (0, 1)))
    jacobian = np.nan_to_num(np.stack([right - here, below - here], axis=-1), posinf=0.0, neginf=0.0)
    return float(np.linalg.svd(jacobian, compute_uv=False).min())


def _features(
    polygons: PolygonSet, batch: PolygonBatch, geometries: Geometries, tidy: Callable[[str], str]
) -> Iterator[str]:
    """One line of text per polygon, empty for those without a geometry; `tidy` mends the text of a geometry."""
    names = [json.dumps(field.name) for field in attribute_fields(polygons)]
    columns = [_texts(array) for array in attribute_arrays(polygons, batch)]
    for identity, values, shape in zip(
        batch.ids, zip(*columns, strict=True), shapely.to_geojson(geometries), strict=True
    ):
        if shape is None:
            yield ""
            continue
        properties = ",".join([f"{name}:{value}" for name, value in zip(names, values, strict=True)])
        yield f'{_FEATURE},"id":"{identity}","properties":{{{properties}}},"geometry":{tidy(shape)}}}'


def _texts(array: pa.Array) -> list[str]:
    """Values as JSON has them; each different one is written once."""
    encoded = array.dictionary_encode()
    known = [json.dumps(value) for value in encoded.dictionary.to_pylist()]
    return ["null" if index is None else known[index] for index in encoded.indices.to_pylist()]


def _seven_decimals(text: str) -> str:
    """GEOS writes one number in a thousand with 15 decimals where 7 say the same."""
    parts, done = [], 0
    for fraction in _LONG_FRACTION.finditer(text):  # a pattern for the whole number takes eight times as long
        start = fraction.start()
        while text[start - 1].isdigit():
            start -= 1
        parts += [text[done:start], repr(round(float(text[start : fraction.end()]), 7))]
        done = fraction.end()
    return "".join([*parts, text[done:]])
