"""Polygons to files: GeoJSON, GeoPackage, FlatGeobuf, GeoParquet. Nothing half written ever has the final name."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import shapely
from pyproj import CRS

from pipeline.errors import OutputError, ResourceError, UsageError
from pipeline.processes import temporary_folder
from pipeline.sidefiles import remove_side_files
from pipeline.syncpoint import reached
from pipeline.vector.attributes import attribute_arrays, attribute_fields
from pipeline.vector.faults import disk_errors
from pipeline.vector.geojson import count_features, write_geojson
from pipeline.vector.style import STYLE_TABLE, add_style, style_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from pipeline.vector.polygonset import PolygonSet
    from pipeline.vector.regularize import Outcome
    from pipeline.vector.rings import Geometries
    from pipeline.vector.spool import PolygonBatch

_GEOMETRY = pa.field("geometry", pa.binary(), nullable=False)
_BBOX = pa.field("bbox", pa.struct({name: pa.float64() for name in ("xmin", "ymin", "xmax", "ymax")}), nullable=False)
_GROUP_ROWS = 8192
"""Twice as many cost 0.5 % less on disk, and a reader of a small area a third more rows."""
_NO_DATE = "1970-01-01T00:00:00.000Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPolygons:
    """What a file holds."""

    path: Path
    """Where it is."""
    num_polygons: int
    """Features in it, counted after reopening."""
    num_dropped: int
    """Polygons that vanished in the rounding of GeoJSON, or that lie off the Earth; 0 for other formats."""
    regularized: Outcome | None = None
    """How many polygons have straight walls; None where that was not asked for."""


def write_polygons(polygons: PolygonSet, path: Path, *, overwrite: bool) -> WrittenPolygons:
    """Write all polygons to one file, in batches; the suffix names the format.

    GeoJSON is in longitude and latitude on WGS 84 (RFC 7946); the other formats keep the scene's CRS. A GeoPackage
    holds a style for QGIS where the set has colours. Attributes: see `attributes`.

    Args:
        polygons: What `polygonize` gave.
        path: Ends in .geojson, .json, .gpkg, .fgb or .parquet; its folder is made if need be.
        overwrite: Replace a file of that name.

    Raises:
        UsageError: CF-030, another suffix.
        OutputError: OU-030, the file exists; OU-031, the place cannot be written.
        ResourceError: RS-002, the disk is full or the file does not read back; no file is left.
    """
    write, count = _writer_for(path)
    _refuse_existing(path, overwrite=overwrite)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder, so that journals and other side files of the driver vanish with it.
        with temporary_folder(path.parent, f".{path.name}.") as folder:
            part = folder / path.name
            dropped = write(polygons, part)
            found, expected = count(part), len(polygons) - dropped
            if found != expected:
                raise ResourceError(
                    f"the file reads back with {found} polygons instead of {expected}",
                    code="RS-002",
                    title="Disk full or write failed",
                    where=str(path),
                    fix="check free space and quota of the disk, then run the same command again",
                )
            _sync(part)
            _refuse_existing(path, overwrite=overwrite)
            remove_side_files(path)
            reached("before-rename")
            part.replace(path)
            reached("after-rename")
        _sync(path.parent)
    return WrittenPolygons(path=path, num_polygons=found, num_dropped=dropped, regularized=polygons.regularized)


def _writer_for(path: Path) -> tuple[Callable[[PolygonSet, Path], int], Callable[[Path], int]]:
    """How to write the format and how to count what was written."""
    formats: dict[str, tuple[Callable[[PolygonSet, Path], int], Callable[[Path], int]]] = {
        ".geojson": (write_geojson, count_features),
        ".json": (write_geojson, count_features),
        ".gpkg": (_write_gpkg, _count_ogr),
        ".fgb": (_write_fgb, _count_ogr),
        ".parquet": (_write_parquet, _count_parquet),
    }
    try:
        return formats[path.suffix.lower()]
    except KeyError:
        raise _no_format(path, formats) from None


def _no_format(path: Path, known: Iterable[str]) -> UsageError:
    what, fix = f"no polygon format ends in '{path.suffix}'", "choose a file name with one of these endings"
    if path.suffix.lower() == ".shp":
        what = "a Shapefile ('.shp') would cut names of attributes to 10 characters, and end at 2 GB"
        fix = f"write a GeoPackage, which the same programs open: {path.with_suffix('.gpkg').name}"
    return UsageError(
        f"{what}; expected one of {' '.join(known)}",
        code="CF-030",
        title="Unknown polygon format",
        where=str(path),
        fix=fix,
    )


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if path.is_dir() or (path.exists() and not overwrite):
        raise OutputError(
            "a folder has this name" if path.is_dir() else "the file exists",
            code="OU-030",
            title="Output exists",
            where=str(path),
            fix="choose another name" + ("" if path.is_dir() else ", or allow overwriting (--overwrite)"),
        )


def _sync(path: Path) -> None:
    """Have the disk take what was written, so that a rename never outruns the data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        reached("before-fsync")
        os.fsync(handle)
        reached("after-fsync")
    finally:
        os.close(handle)


def _arrays(polygons: PolygonSet, batch: PolygonBatch) -> tuple[list[pa.Array], Geometries]:
    """Attributes with the geometry last, and the geometries, in the scene's CRS."""
    geometries = polygons.in_crs(batch)
    wkb = pa.array(shapely.to_wkb(geometries, byte_order=1), _GEOMETRY.type)
    return [*attribute_arrays(polygons, batch), wkb], geometries


def _write_parquet(polygons: PolygonSet, path: Path) -> int:
    """GeoParquet 1.1 with a bbox column; readers of an area skip row groups, one per batch, that lie elsewhere."""
    fields = [*attribute_fields(polygons), _GEOMETRY, _BBOX]
    schema = pa.schema(fields, metadata={"geo": json.dumps(_geo_metadata(polygons))})
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for batch in polygons.iter_batches(_GROUP_ROWS, along_curve=True):
            arrays, geometries = _arrays(polygons, batch)
            corners = [pa.array(c) for c in shapely.bounds(geometries).T]
            arrays.append(pa.StructArray.from_arrays(corners, fields=list(_BBOX.type)))
            file.write_batch(pa.record_batch(arrays, schema=schema), row_group_size=len(batch))
    return 0


def _geo_metadata(polygons: PolygonSet) -> dict[str, Any]:
    """File metadata as GeoParquet 1.1 asks; `crs` null says that none is known."""
    wkt = polygons.geobox.crs_wkt
    covering = {corner: ["bbox", corner] for corner in ("xmin", "ymin", "xmax", "ymax")}
    column = {
        "encoding": "WKB",
        "geometry_types": [_geometry_type(polygons)],
        "crs": CRS.from_wkt(wkt).to_json_dict() if wkt else None,
        "orientation": "counterclockwise",
        "covering": {"bbox": covering},
    }
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _geometry_type(polygons: PolygonSet) -> str:
    return "MultiPolygon" if polygons.multi else "Polygon"


def _count_parquet(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def _write_gpkg(polygons: PolygonSet, path: Path) -> int:
    with _fixed_date():
        dropped = _write_ogr(polygons, path, "GPKG")
        if polygons.colors and path.stem.lower() != STYLE_TABLE:
            add_style(path, style_of(polygons.colors, polygons.class_name))
    return dropped


def _write_fgb(polygons: PolygonSet, path: Path) -> int:
    return _write_ogr(polygons, path, "FlatGeobuf")


def _write_ogr(polygons: PolygonSet, path: Path, driver: str) -> int:
    """Stream batches through OGR."""
    schema = pa.schema([*attribute_fields(polygons), _GEOMETRY])
    batches = (pa.record_batch(_arrays(polygons, b)[0], schema=schema) for b in polygons.iter_batches())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)  # a mask without one is allowed
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(schema, batches),
            path,
            layer=path.stem,
            driver=driver,
            geometry_name="geometry",
            geometry_type=_geometry_type(polygons),
            crs=_ogr_crs(polygons.geobox.crs_wkt),
        )
    return 0


def _ogr_crs(wkt: str | None) -> str | None:
    """An EPSG code where there is one: OGR then stores the official definition."""
    if wkt is None:
        return None
    crs = CRS.from_wkt(wkt)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()


@contextmanager
def _fixed_date() -> Iterator[None]:
    """No time stamp in a GeoPackage: equal polygons give equal bytes."""
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _NO_DATE})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


def _count_ogr(path: Path) -> int:
    return int(pyogrio.read_info(path, layer=path.stem, force_feature_count=True)["features"])
