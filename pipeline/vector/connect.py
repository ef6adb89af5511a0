"""8-connectivity: regions of one class that touch at a corner become one feature of several polygons.

One polygon cannot hold them: rings that touch at a corner from both sides are not valid. Two regions of a class that
share a corner touch there diagonally; with a side between them they would be one region.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.vector.faults import disk_errors
from pipeline.vector.spool import SCHEMA, SpoolReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.vector.rings import Ints
    from pipeline.vector.spool import PolygonBatch, Smallest

_FEATURES_AT_ONCE = 8192
_BYTES_AT_ONCE = 32 << 20


def touching_groups(path: Path, scene_hw: tuple[int, int]) -> Ints:
    """Group of each polygon of a spool, in canonical order, numbered by the first polygon of each.

    Args:
        path: A spool whose outlines follow pixels.
        scene_hw: Height and width of the mask.
    """
    with SpoolReader(path) as reader:
        pairs = [_pairs(reader, rows, scene_hw[1] + 1) for rows in reader.row_bands(scene_hw[0])]
        return _groups(np.concatenate(pairs), len(reader))


def _pairs(reader: SpoolReader, rows: tuple[int, int], line: int) -> NDArray[np.int64]:
    """Polygons of one class that share a corner in some rows, `(pair, 2)`."""
    keys, owners, count = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)], 0
    for batch in reader.iter_batches():
        xy, polygon = shapely.get_coordinates(batch.polygons, return_index=True)
        x, y = xy.astype(np.int64).T
        inside = (y >= rows[0]) & (y < rows[1])
        keys.append(np.stack([y * line + x, batch.class_ids[polygon]], axis=1)[inside])
        owners.append(polygon[inside] + count)
        count += len(batch)
    all_keys, all_owners = np.concatenate(keys), np.concatenate(owners)
    order = np.lexsort((all_owners, all_keys[:, 1], all_keys[:, 0]))
    all_keys, all_owners = all_keys[order], all_owners[order]
    same = (all_keys[1:] == all_keys[:-1]).all(axis=1) & (all_owners[1:] != all_owners[:-1])
    return np.stack([all_owners[:-1][same], all_owners[1:][same]], axis=1)


def _groups(pairs: NDArray[np.int64], count: int) -> Ints:
    if not count:
        return np.empty(0, np.int64)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def connect_spool(path: Path, target: Path, groups: Ints, smallest: Smallest) -> Path:
    """Write a spool with one multi-polygon for each group, `target`.

    Args:
        path: The spool; simplified or not.
        target: The new one, in canonical order.
        groups: What `touching_groups` gave.
        smallest: Which groups stay.

    Raises:
        ResourceError: RS-002, the disk is full.
    """
    with SpoolReader(path) as reader, disk_errors(target), pa.ipc.new_file(str(target), SCHEMA) as file:
        for members in _chunks(groups, reader):
            record = _joined(reader.take(members), groups[members])
            units, pixels = (record.column(name).to_numpy() for name in ("area_units", "area_px"))
            file.write_batch(record.filter(pa.array(smallest.keeps(units, pixels))))
    return target


def _chunks(groups: Ints, reader: SpoolReader) -> Iterator[Ints]:
    """Members, as canonical numbers, of some whole groups after the other."""
    order = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[order], append=-1)) + 1
    sizes = np.cumsum(reader.num_bytes[order])[ends - 1]
    start = done = 0
    while start < len(order):
        stop_bytes = int(np.searchsorted(sizes, done + _BYTES_AT_ONCE))
        stop_rows = int(np.searchsorted(ends, start + _FEATURES_AT_ONCE))
        last = max(min(stop_bytes, stop_rows, len(ends) - 1), int(np.searchsorted(ends, start, side="right")))
        yield order[start : ends[last]]
        start, done = int(ends[last]), int(sizes[last])


def _joined(batch: PolygonBatch, owner: Ints) -> pa.RecordBatch:
    """Features of a batch whose polygons belong to the features `owner`, ascending."""
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    shapes = shapely.multipolygons(
        batch.polygons, indices=np.repeat(np.arange(len(starts)), np.diff([*starts, len(owner)]))
    )
    wkb = shapely.to_wkb(shapes, byte_order=1)
    columns = {
        "first": batch.first[starts],
        "class_id": batch.class_ids[starts],
        "area_px": np.add.reduceat(batch.area_px, starts),
        "area_units": np.add.reduceat(batch.area_units, starts),
        "touches_border": np.logical_or.reduceat(batch.touches_border, starts),
        "touches_nodata": np.logical_or.reduceat(batch.touches_nodata, starts),
        "steps_sum": np.add.reduceat(batch.steps_sum, starts),
        "steps_min": np.minimum.reduceat(batch.steps_min, starts),
        "unsure_px": np.add.reduceat(batch.unsure_px, starts),
        "filled_px": np.add.reduceat(batch.filled_px, starts),
        "num_bytes": np.fromiter(map(len, wkb), np.int64, len(wkb)),
        "id": [_identity(batch.ids[a:b]) for a, b in zip(starts, [*starts[1:], len(owner)], strict=True)],
        "wkb": wkb,
    }
    return pa.record_batch([pa.array(columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


def _identity(members: list[str]) -> str:
    """Of a feature: its polygon's, or a digest of those of its polygons."""
    return members[0] if len(members) == 1 else hashlib.blake2b("".join(members).encode(), digest_size=8).hexdigest()
