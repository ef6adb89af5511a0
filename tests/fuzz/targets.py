"""What is fuzzed: how an honest input looks, how it is damaged, and what reads it."""

from __future__ import annotations

import functools
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutate import damage_bytes, damage_json, damage_text, damage_tiff

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of input."""

    seeds: Callable[[Path], list[Any]]
    """Honest inputs, made in a folder."""
    write: Callable[[Any, random.Random, Path], Path]
    """Writes a damaged copy of one of them into a folder, under the same name each time."""
    read: Callable[[Path], object]
    """What a user's command does with it."""


def _tiffs(folder: Path) -> list[bytes]:
    import rasterio
    from rasterio.control import GroundControlPoint
    from rasterio.transform import from_origin

    layouts: tuple[dict[str, Any], ...] = (
        {}, {"compress": "deflate"}, {"compress": "lzw", "predictor": 2}, {"compress": "zstd"},
        {"compress": "packbits"},
        {"compress": "jpeg", "dtype": "uint8", "photometric": "ycbcr", "count": 3, "tiled": True},
        {"compress": "lerc"},
        {"tiled": True, "compress": "deflate"}, {"bigtiff": "YES", "tiled": True}, {"endianness": "BIG"},
        {"dtype": "float32", "compress": "deflate", "predictor": 3, "nodata": float("nan")}, {"dtype": "float64"},
        {"interleave": "pixel", "count": 4, "tiled": True}, {"count": 4, "alpha": "yes", "dtype": "uint8"},
        {"nodata": 0, "sparse_ok": True, "tiled": True}, {"dtype": "int16", "nodata": -32768}, {"crs": None},
        {"dtype": "uint8", "nbits": 1}, {"dtype": "complex64"},
        {"photometric": "palette", "dtype": "uint8", "count": 1},
        {"gcps": [GroundControlPoint(row=r, col=c, x=10 + c, y=50 - r) for r, c in ((0, 0), (0, 60), (60, 0))]},
    )  # fmt: skip
    made = []
    for number, layout in enumerate(layouts):
        profile: dict[str, Any] = {"driver": "GTiff", "count": 2, "height": 70, "width": 83, "dtype": "uint16"}
        profile |= {"crs": "EPSG:32633"} | ({} if "gcps" in layout else {"transform": from_origin(5e5, 5e6, 10, 10)})
        profile |= layout
        if profile.get("tiled"):
            profile |= {"blockxsize": 32, "blockysize": 32}
        rng = np.random.default_rng(number)
        data = rng.integers(0, 2 if profile.get("nbits") == 1 else 200, (profile["count"], 70, 83))
        with rasterio.open(folder / "seed.tif", "w", **profile) as file:
            file.write(data.astype(profile["dtype"]))
            if number % 5 == 0 and "compress" not in layout:
                file.build_overviews([2])
        made.append((folder / "seed.tif").read_bytes())
    return made


def _netcdfs(folder: Path) -> list[bytes]:
    from tests.unit.scene.test_gridded import dataset

    made = []
    for encoding in ({}, {"chunksizes": (16, 16), "zlib": True}, {"chunksizes": (50, 20), "fletcher32": True}):
        dataset().to_netcdf(folder / "seed.nc", engine="h5netcdf", encoding={"red": encoding})
        made.append((folder / "seed.nc").read_bytes())
    dataset().astype("int16").assign_coords(dataset().coords).to_netcdf(folder / "seed.nc", engine="scipy")
    return [*made, (folder / "seed.nc").read_bytes()]


def _zarrs(folder: Path) -> list[Any]:
    """What consolidated metadata tell of a group whose chunks stay there."""
    import zarr

    from tests.unit.scene.test_gridded import dataset

    dataset().to_zarr(folder / "fuzzed.zarr", zarr_format=3, consolidated=False)
    zarr.consolidate_metadata(str(folder / "fuzzed.zarr"))
    return [json.loads((folder / "fuzzed.zarr" / "zarr.json").read_text())]


def _inspect(path: Path) -> object:
    from pipeline.run.inspect import inspect_target

    return json.dumps(inspect_target(path), allow_nan=False)


def _settings(_folder: Path) -> list[str]:
    return [path.read_text() for path in sorted((ROOT / "configs" / "segment").glob("*.yaml"))]


def _read_settings(path: Path) -> object:
    from pipeline.run.settings import make_settings
    from pipeline.yaml_file import read_yaml

    return make_settings(read_yaml(path), where=str(path))


_CSV = (
    'name,scene,date\na,/data/a.tif,2020\nb,b.tif,2021\n"c, d","s3://bucket/c.tif",2022\ne,https://h.org/e.tif?x=1,\n'
)


def _collect(path: Path) -> object:
    from pipeline.run.scene_list import collect

    return collect([], [path])


def _items(folder: Path) -> list[Any]:
    from tests.scenes import smooth_values, write_scene

    for name in ("B02.tif", "B03.tif"):
        write_scene(folder / name, smooth_values(1, (10, 10)))
    asset = {
        "href": "./B02.tif",
        "type": "image/tiff; application=geotiff",
        "roles": ["data"],
        "eo:bands": [{"name": "b"}],
    }
    item = {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": "S2_29RKH", "bbox": [0, 0, 1, 1],
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]},
        "properties": {"datetime": "2020-02-19T11:00:00Z", "proj:epsg": 32629, "proj:shape": [10, 10]},
        "links": [{"rel": "self", "href": "item.json"}],
        "assets": {"blue": {**asset, "proj:transform": [10, 0, 5e5, 0, -10, 5e6]}, "info": {"href": "i.xml"}},
    }  # fmt: skip
    other = {**item, "id": "other", "assets": {"blue": {**asset, "href": "./B03.tif"}}}
    return [item, {"type": "FeatureCollection", "features": [item, other]}]


def _read_items(path: Path) -> object:
    """As a list of a batch, and as a scene."""
    from pipeline.errors import PipelineError
    from pipeline.run.inspect import inspect_target

    try:
        return _collect(path)
    except PipelineError:
        return inspect_target(path)


def _models(folder: Path) -> list[Any]:
    from tests.scenes import save_threshold_model

    made = save_threshold_model(folder / "model")
    return [json.loads((folder / "model" / "model.json").read_text())] if made else []


def _load_model(path: Path) -> object:
    from pipeline.model import load_model

    return load_model(path)


def _ledger(_folder: Path) -> list[bytes]:
    from pipeline.store import TileRecord
    from pipeline.store.ledger import encode_record

    records = [
        TileRecord(
            tile=tile, kind="written" if tile % 2 else "empty", mask_sha256="0" * 64 if tile % 2 else None, plan_id="p",
            prob_sha256=None, seconds=0.5, valid_px=tile % 2, class_px=(tile % 2, 0), splits=0, attempt=1,
        )
        for tile in range(4)
    ]  # fmt: skip
    return [b"".join(map(encode_record, records))]


def _write_ledger(seed: bytes, rng: random.Random, folder: Path) -> Path:
    """Damaged bytes, or a damaged record under a checksum that holds."""
    from pipeline.store.lines import seal, unseal
    from tests.fuzz.mutate import damage_bytes

    lines = seed.splitlines(keepends=True)
    if rng.random() < 0.5:
        made = damage_bytes(seed, rng)
    else:
        at = rng.randrange(len(lines))
        body = unseal(lines[at].rstrip(b"\n"))
        assert body is not None
        lines[at] = seal(damage_json(json.loads(body), rng).replace(b"\n", b" "))
        made = b"".join(lines)
    (folder / "ledger").mkdir(exist_ok=True)
    (folder / "ledger" / "host-1-a.jsonl").write_bytes(made)
    return folder / "ledger"


def _scan(path: Path) -> object:
    from pipeline.store import scan_ledger

    found = scan_ledger(path, plan_id="p")
    assert all(0 <= tile == record.tile for tile, record in found.records.items())
    return found


def _writer(name: str, damage: Callable[[Any, random.Random], bytes]) -> Callable[[Any, random.Random, Path], Path]:
    return functools.partial(_write, name, damage)


def _write(
    name: str, damage: Callable[[Any, random.Random], bytes], seed: Any, rng: random.Random, folder: Path
) -> Path:
    path = folder / name
    path.write_bytes(damage(seed, rng))
    return path


def _areas(_folder: Path) -> list[Any]:
    ring = [[15.0, 45.15], [15.005, 45.15], [15.005, 45.155], [15.0, 45.155], [15.0, 45.15]]
    polygon = {"type": "Polygon", "coordinates": [ring, [[c + 0.001 for c in point] for point in ring]]}
    features = [
        {"type": "Feature", "properties": {"a": 1}, "geometry": polygon},
        {"type": "Feature", "properties": {}, "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]}},
        {"type": "Feature", "properties": None, "geometry": {"type": "GeometryCollection", "geometries": [polygon]}},
        {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [15, 45]}},
    ]
    return [{"type": "FeatureCollection", "features": features}, features[0]]


def _lay_area(path: Path) -> object:
    import pyproj
    from affine import Affine

    from pipeline.grid import GeoBox, Window
    from pipeline.scene import Aoi

    transform = Affine(10, 0, 5e5, 0, -10, 5e6)
    geobox = GeoBox(shape=(200, 200), transform=transform, crs_wkt=pyproj.CRS.from_epsg(32633).to_wkt())
    return Aoi.from_file(path, geobox).mask(Window(row_off=0, col_off=0, height=200, width=200))


def _records(folder: Path) -> list[Any]:
    """(file, document): `run.json` of a run that has ended in `out`, `plan.json` of one that has not in `begun`."""
    import pipeline as sm
    from tests.scenes import save_threshold_model, smooth_values, write_scene

    scene = write_scene(folder / "scene.tif", smooth_values(2, (64, 64)), names=("b0", "b1"))
    save_threshold_model(folder / "model")
    sm.segment(scene, folder / "model", folder / "out", patch=64, tile=64, keep=True)
    (folder / "begun").mkdir()
    (folder / "out" / ".scenemask").rename(folder / "begun" / ".scenemask")
    kept = folder / "begun" / ".scenemask" / "plan.kept.json"
    return [
        (name, json.loads(path.read_text()))
        for name, path in (("out/run.json", folder / "out" / "run.json"), ("begun/.scenemask/plan.json", kept))
    ]


def _write_record(seed: tuple[str, Any], rng: random.Random, folder: Path) -> Path:
    return _write(seed[0], damage_json, seed[1], rng, folder)


def _look_at_output(path: Path) -> object:
    from pipeline.run.audit import audit
    from pipeline.run.status import status_of

    out = path.parent if path.name == "run.json" else path.parents[1]
    status = status_of(out)
    return audit(out) if status.kind == "complete" else status.to_json()


TARGETS = {
    "tiff": Target(seeds=_tiffs, write=_writer("fuzzed.tif", damage_tiff), read=_inspect),
    "netcdf": Target(seeds=_netcdfs, write=_writer("fuzzed.nc", damage_bytes), read=_inspect),
    "zarr": Target(
        seeds=_zarrs, write=_writer("fuzzed.zarr/zarr.json", damage_json), read=lambda path: _inspect(path.parent)
    ),
    "yaml": Target(seeds=_settings, write=_writer("fuzzed.yaml", damage_text), read=_read_settings),
    "csv": Target(seeds=lambda _: [_CSV], write=_writer("fuzzed.csv", damage_text), read=_collect),
    "stac": Target(seeds=_items, write=_writer("fuzzed.json", damage_json), read=_read_items),
    "model": Target(seeds=_models, write=_writer("model/model.json", damage_json), read=_load_model),
    "aoi": Target(seeds=_areas, write=_writer("fuzzed.geojson", damage_json), read=_lay_area),
    "record": Target(seeds=_records, write=_write_record, read=_look_at_output),
    "ledger": Target(seeds=_ledger, write=_write_ledger, read=_scan),
}


def _misbehave(how: Callable[[], object], path: Path) -> object:
    """The second time it is called: the first one is the child's warming up."""
    count = path.with_name("count")
    count.write_text((count.read_text() if count.exists() else "") + "x")
    return how() if count.read_text() == "xx" else None


def _bad(how: Callable[[], object]) -> Target:
    return Target(
        seeds=lambda _: [b"x"], write=_writer("bad", lambda seed, _: seed), read=functools.partial(_misbehave, how)
    )


MISBEHAVING = {"_crash": _bad(os.abort), "_hang": _bad(lambda: time.sleep(60)), "_raise": _bad(lambda: 1 // 0)}
"""For the test of the harness."""
