"""Scenes on `gs://` and `az://`: GDAL and obstore really reading from servers that answer as those clouds do.

Google's XML API is that of S3 where objects are read and listed, so moto answers for it; faults are in
`tests/unit/scene/test_remote.py`, for all clouds.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import boto3
import numpy as np
import pytest
import zarr

import pipeline as sm
from pipeline.access import Access
from pipeline.grid import Window
from pipeline.scene import close_all
from tests.commands import Cli, assert_block
from tests.infra.azure_server import ACCOUNT, AzureServer
from tests.infra.moto_server import BUCKET, KEYS, moto_server
from tests.scenes import save_threshold_model, sha256, smooth_values, write_scene
from tests.unit.scene.test_gridded import dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "canary-of-the-account-key"
KEY = base64.b64encode(SECRET.encode()).decode()
WINDOW = Window(row_off=5, col_off=7, height=30, width=41)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container with a scene in two forms, a model, and the result of the scene on disk."""
    base = tmp_path_factory.mktemp("clouds")
    container = base / ACCOUNT / BUCKET / "deep"
    container.mkdir(parents=True)
    values = smooth_values(2, (233, 301))
    write_scene(container / "scene.tif", values, nodata=0, names=("b0", "b1"), tiled=True, blockxsize=64, blockysize=64)
    dataset().to_zarr(container / "cube.zarr", zarr_format=3, consolidated=False)
    dataset().to_netcdf(container / "cube.nc", engine="h5netcdf")
    save_threshold_model(base / "model")
    sm.segment(container / "scene.tif", base / "model", base / "local", patch=64, tile=64)
    return base


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[dict[str, str]]:
    """Cloud -> its endpoint."""
    with moto_server() as google, AzureServer(folder) as azure, pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=google)
        client.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
        for path in (folder / ACCOUNT / BUCKET).rglob("*"):
            if path.is_file():
                key = str(path.relative_to(folder / ACCOUNT / BUCKET))
                client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes(), ACL="public-read")
        yield {"gs": google, "az": azure.endpoint}
    close_all()


@pytest.fixture
def azure_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)


@pytest.mark.usefixtures("azure_key")
@pytest.mark.parametrize("cloud", ["gs", "az"])
def test_segment_gives_the_same_bytes(
    folder: Path, servers: dict[str, str], tmp_path: Path, cloud: str, cli: Cli
) -> None:
    where = f"{cloud}://{BUCKET}/deep"
    args = ("-m", folder / "model", "--patch", 64, "--tile", 64, "--endpoint", servers[cloud], "--keep")
    code, out, err = cli("segment", f"{where}/scene.tif", *args, "-o", tmp_path / "out", "--workers", 1)
    assert code == 0, err
    assert sha256(tmp_path / "out" / "mask.tif") == sha256(folder / "local" / "mask.tif")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if any(s.encode() in path.read_bytes() for s in (SECRET, KEY))]
    said = out + err
    code, out, err = cli("segment", f"{where}/none.tif", *args, "-o", tmp_path / "none")
    assert code == 3
    assert_block(err, "IN-040")
    assert not any(secret in said + out + err for secret in (SECRET, KEY))


@pytest.mark.usefixtures("azure_key")
@pytest.mark.parametrize("cloud", ["gs", "az"])
@pytest.mark.parametrize("name", ["cube.zarr", "cube.nc"])
def test_cubes(folder: Path, servers: dict[str, str], cloud: str, name: str) -> None:
    access = Access(endpoint=servers[cloud], retries=0)
    here = sm.open_scene(folder / ACCOUNT / BUCKET / "deep" / name)
    there = sm.open_scene(f"{cloud}://{BUCKET}/deep/{name}", access=access)
    assert np.array_equal(there.read(WINDOW), here.read(WINDOW))
    assert (there.geobox, there.bands) == (here.geobox, here.bands)
    assert there.fingerprint() == there.fingerprint()


@pytest.mark.usefixtures("azure_key")
def test_a_chunk_that_changes_is_noticed(folder: Path) -> None:
    with AzureServer(folder) as server:
        scene = sm.open_scene(f"az://{BUCKET}/deep/cube.zarr", access=Access(endpoint=server.endpoint))
        before = scene.fingerprint()
        array = zarr.open_group(folder / ACCOUNT / BUCKET / "deep" / "cube.zarr")["red"]
        old = array[0, 0]
        array[0, 0] = 9
        assert scene.fingerprint() != before
        array[0, 0] = old


@pytest.mark.parametrize(
    ("environment", "signed"),
    [
        ({"AZURE_STORAGE_ACCOUNT": ACCOUNT}, {""}),
        ({"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_ACCESS_KEY": KEY}, {f"SharedKey {ACCOUNT}"}),
        ({"AZURE_STORAGE_ACCOUNT": ACCOUNT, "AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={SECRET}"}, {""}),
        ({"AZURE_STORAGE_CONNECTION_STRING": f"AccountName={ACCOUNT};AccountKey={KEY}"}, {f"SharedKey {ACCOUNT}"}),
    ],
)
def test_azures_keys_reach_both_libraries(
    folder: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], signed: set[str], cli: Cli
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with AzureServer(folder) as server:
        code, out, err = cli("inspect", f"az://{BUCKET}/deep/scene.tif", "--endpoint", server.endpoint)
        assert code == 0, err
        assert server.signed == signed
        with_signature = "AZURE_STORAGE_SAS_TOKEN" in environment
        assert all((SECRET in path) == with_signature for _, path, _ in server.requests)
        said = out + err
        server.misbehave("403")
        code, out, err = cli("inspect", f"az://{BUCKET}/deep/scene.tif", "--endpoint", server.endpoint)
        assert code == 8
        assert_block(err, "ST-010")
        assert SECRET not in said + out + err
        close_all()


def test_without_an_account_one_sentence_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = cli("inspect", "az://container/a.tif")
    assert code == 2
    assert_block(err, "CF-057")
