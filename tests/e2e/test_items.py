"""Scenes of several files from the command line: one mask, wherever they lie and however they are cut into tiles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from affine import Affine

from pipeline.access import Access
from pipeline.bucket import Bucket
from pipeline.scene import close_all
from tests.commands import Cli, assert_block
from tests.infra.moto_server import BUCKET, KEYS, moto_server
from tests.infra.range_server import RangeServer
from tests.scenes import NORTH_UP, UTM, save_threshold_model, sha256, smooth_values, write_scene
from tests.unit.scene.products import pack, write_safe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHAPE = (160, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An item with a band of 10 m and one of 20 m, the same as a SAFE product and as one file, and a model."""
    base = tmp_path_factory.mktemp("items")
    fine, coarse = smooth_values(1, SHAPE)[0], smooth_values(1, (80, 100), seed=1)[0]
    (base / "item").mkdir()
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    write_scene(base / "item" / "fine.tif", fine[None], nodata=0, **blocks)
    write_scene(base / "item" / "coarse.tif", coarse[None], nodata=0, transform=NORTH_UP @ Affine.scale(2), **blocks)
    assets = {
        key: {"href": f"./{key}.tif", "type": "image/tiff; application=geotiff", "bands": [{"name": name}]}
        for key, name in (("coarse", "b1"), ("fine", "b0"))
    }
    item = {"type": "Feature", "id": "small", "properties": {}, "assets": assets}
    (base / "item" / "item.json").write_text(json.dumps(item))
    both = np.stack([fine, coarse.repeat(2, 0).repeat(2, 1)])
    write_scene(base / "one.tif", both, nodata=0, names=("b0", "b1"))
    save_threshold_model(base / "model")
    return base


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_all()


def run(cli: Cli, folder: Path, out: Path, *args: object) -> Path:
    common = ("-m", folder / "model", "-o", out, "--patch", 64, "--resampling", "nearest")
    code, _, err = cli("segment", *args, *common)
    assert code == 0, err
    return out


def test_an_item_gives_the_mask_of_one_file_anywhere(
    folder: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(cli, folder, tmp_path / "one", folder / "one.tif")
    local = run(cli, folder, tmp_path / "local", folder / "item" / "item.json", "--tile", 64, "--workers", 2)
    with RangeServer(folder / "item") as server:
        web = run(cli, folder, tmp_path / "web", server.url("item.json"), "--allow-loopback", "--tile", 128)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with moto_server() as endpoint:
        for path in (folder / "item").iterdir():
            Bucket(BUCKET, Access(endpoint=endpoint)).put_file(f"deep/{path.name}", path)
        bucket = run(cli, folder, tmp_path / "s3", f"s3://{BUCKET}/deep/item.json", "--endpoint", endpoint)
    masks = {sha256(out / "mask.tif") for out in (one, local, web, bucket)}
    assert len(masks) == 1
    record = json.loads((local / "run.json").read_text())
    assert [source["resampling"] for source in record["source"]["sources"]] == ["nearest", "none"]
    assert record["values"] == "stored values, scaled as the model says"
    assert {"source 1", "source 2"} <= record["identity"]["scene"].keys()


def test_items_of_a_collection_by_their_ids(folder: Path, tmp_path: Path, cli: Cli) -> None:
    for path in (folder / "item").glob("*.tif"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    item = json.loads((folder / "item" / "item.json").read_text())
    items = [item, {**item, "id": "S2 #2"}, {**item, "id": "thin", "assets": {"fine": item["assets"]["fine"]}}]
    collection = tmp_path / "found.json"
    collection.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    one = run(cli, folder, tmp_path / "one", folder / "item" / "item.json")
    chosen = run(cli, folder, tmp_path / "chosen", f"{collection}#S2 #2")
    assert sha256(chosen / "mask.tif") == sha256(one / "mask.tif")
    with RangeServer(tmp_path) as server:
        web = run(cli, folder, tmp_path / "web", server.url("found.json?sig=1#small"), "--allow-loopback")
    assert sha256(web / "mask.tif") == sha256(one / "mask.tif")
    for wanted in (collection, f"{collection}#none"):
        code, _, err = cli("inspect", wanted)
        assert code == 3
        assert_block(err, "IN-052")
        assert "small, S2 #2, thin" in err
    items.pop()
    collection.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    batch = ("batch", "--list", collection, "-m", folder / "model", "-o", tmp_path / "batch", "--resampling", "nearest")
    code, _, err = cli(*batch, "--patch", 64)
    assert code == 0, err
    masks = sorted((tmp_path / "batch").glob("*/mask.tif"))
    assert [sha256(mask) for mask in masks] == 2 * [sha256(one / "mask.tif")]


def test_a_product_that_changes_is_another_scene(folder: Path, tmp_path: Path, cli: Cli) -> None:
    for path in (folder / "item").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    out = run(cli, folder, tmp_path / "out", tmp_path / "item.json")
    write_scene(tmp_path / "coarse.tif", smooth_values(1, (80, 100)), nodata=0, transform=NORTH_UP @ Affine.scale(2))
    code, _, err = cli("segment", tmp_path / "item.json", "-m", folder / "model", "-o", out)
    assert code == 5
    assert_block(err, "OU-011")
    assert "source 1" in err


def test_a_packed_product_and_a_mosaic_are_scenes(folder: Path, tmp_path: Path, cli: Cli) -> None:
    with rasterio.open(folder / "one.tif") as file:
        data = file.read()
    fine, coarse = data[0], data[1, ::2, ::2]
    bands = {"B02": (10, fine, NORTH_UP), "B11": (20, coarse, NORTH_UP @ Affine.scale(2))}
    safe = write_safe(tmp_path, bands, crs=UTM, offset=0, quantity=1)
    archive = pack(safe, tmp_path / "product.zip")
    code, out, err = cli("inspect", archive, "--json")
    assert code == 0, err
    assert [band["name"] for band in json.loads(out)["bands"]] == ["B02", "B11"]
    one = run(cli, folder, tmp_path / "one", folder / "one.tif")
    packed = run(cli, folder, tmp_path / "packed", archive, "--bands", "blue,swir16")
    halves = [
        write_scene(tmp_path / f"{name}.tif", data[:, :, cols], nodata=0, names=("b0", "b1"), transform=place)
        for name, cols, place in (
            ("west", slice(0, 130), NORTH_UP),
            ("east", slice(110, 200), NORTH_UP @ Affine.translation(110, 0)),
        )
    ]
    both = run(cli, folder, tmp_path / "both", *halves, "--tile", 64, "--keep")
    kept = json.loads((tmp_path / "both" / ".scenemask" / "plan.kept.json").read_text())
    assert kept["inputs"]["scene"] == [str(half) for half in halves]
    assert sha256(packed / "mask.tif") == sha256(one / "mask.tif")
    assert sha256(both / "mask.tif") == sha256(one / "mask.tif")
    code, _, err = cli("segment", safe, "-m", folder / "model", "-o", safe / "out", "--bands", "blue,swir16")
    assert code == 2
    assert_block(err, "CF-008")


def test_a_model_without_its_band_is_told(folder: Path, tmp_path: Path, cli: Cli) -> None:
    bands = {"B02": (10, smooth_values(1, SHAPE)[0], NORTH_UP)}
    safe = write_safe(tmp_path, bands, crs=UTM)
    code, _, err = cli("plan", safe, "-m", folder / "model")
    assert code == 3
    assert_block(err, "IN-012")
