"""Zarr groups and NetCDF-4 files on a web server and in a bucket: windows of them, within the walls of other scenes."""

from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import zarr

import pipeline as sm
from pipeline.access import Access
from pipeline.bucket import Bucket
from pipeline.errors import InfrastructureError, InputError
from pipeline.grid import Window
from pipeline.scene import close_all
from tests.commands import Cli, assert_block
from tests.infra.moto_server import BUCKET, KEYS, moto_server
from tests.infra.range_server import RangeServer
from tests.scenes import save_threshold_model, sha256, smooth_values
from tests.unit.scene.test_gridded import dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "canary-of-the-query"
QUERY = f"?sig={CANARY}"
SHAPE = (400, 500)
CHUNKS = {"chunks": (64, 64)}
WINDOW = Window(row_off=70, col_off=130, height=50, width=60)
FAR = Window(row_off=300, col_off=300, height=90, width=90)
PATIENT = Access(allow_loopback=True, retries=1)
HASTY = Access(allow_loopback=True, retries=0, stall_s=1, connect_s=1)
PLACES = ("two.zarr", "three.zarr", "four.nc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene written in three ways, and a model for it."""
    base = tmp_path_factory.mktemp("gridded")
    scene = dataset(values=smooth_values(2, SHAPE), names=("b0", "b1"))
    for version, name in ((2, "two.zarr"), (3, "three.zarr")):
        encoding = {"b0": CHUNKS, "b1": CHUNKS}
        scene.to_zarr(base / name, zarr_format=version, consolidated=False, encoding=encoding)
        zarr.consolidate_metadata(str(base / name))
    packed = {"chunksizes": (64, 64), "zlib": True}
    scene.to_netcdf(base / "four.nc", engine="h5netcdf", encoding={"b0": packed, "b1": packed})
    save_threshold_model(base / "model")
    return base


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as running:
        yield running
    close_all()


@pytest.mark.filterwarnings("ignore:Consolidated metadata")  # not in the specification of version 3 yet, says zarr
@pytest.mark.parametrize("name", PLACES)
def test_a_window_behind_a_web_server(folder: Path, server: RangeServer, name: str) -> None:
    here = sm.open_scene(folder / name)
    there = pickle.loads(pickle.dumps(sm.open_scene(server.url(name) + QUERY, access=PATIENT)))
    assert (there.geobox, there.bands, there.name) == (here.geobox, here.bands, here.name)
    server.requests.clear()
    assert np.array_equal(there.read(WINDOW), here.read(WINDOW))
    asked = list(server.requests)
    assert all(path.endswith(QUERY) for _, path, _ in asked)
    # Two chunks by two of each band; of one file also the index of its chunks, and what lies between them.
    assert len(asked) <= 8
    assert there.fingerprint() == there.fingerprint()
    assert CANARY not in repr(there.fingerprint()) + str(getattr(there, "path", ""))


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("name", PLACES)
def test_the_walls_are_those_of_other_scenes(server: RangeServer, name: str) -> None:
    with pytest.raises(InputError, match="IN-041"):
        sm.open_scene(server.url(name))
    faults = {"403": "ST-010", "503": "ST-011", "whole": "IN-042"} | ({"hang": "ST-012"} if name == "four.nc" else {})
    for fault, code in faults.items():
        server.misbehave("")
        scene = sm.open_scene(server.url(name) + QUERY, access=HASTY)
        server.misbehave(fault)
        with pytest.raises(sm.PipelineError, match=code) as caught:
            scene.read(FAR)
        assert CANARY not in str(caught.value) + repr(caught.value)
        with pytest.raises(sm.PipelineError, match=code):
            sm.open_scene(server.url(name) + QUERY + fault, access=HASTY)
    server.misbehave("503", times=1)
    sm.open_scene(server.url(name) + QUERY + "passing", access=PATIENT)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_what_changes_is_noticed(folder: Path, tmp_path: Path) -> None:
    for name in PLACES:
        place = tmp_path / name
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, place)
    with RangeServer(tmp_path) as server:
        scenes = {name: sm.open_scene(server.url(name), access=PATIENT) for name in PLACES}
        before = {name: scene.fingerprint() for name, scene in scenes.items()}
        for name in PLACES[:2]:
            zarr.open_group(tmp_path / name)["b0"][:] = 9
        dataset(values=smooth_values(2, SHAPE, seed=5), names=("b0", "b1")).to_netcdf(
            tmp_path / "four.nc", engine="h5netcdf"
        )
        assert all(scene.fingerprint() != before[name] for name, scene in scenes.items())
        with pytest.raises(InputError, match="IN-015"):
            scenes["four.nc"].read(FAR)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("name", PLACES[1:])
def test_segment_gives_the_same_bytes(folder: Path, server: RangeServer, tmp_path: Path, name: str, cli: Cli) -> None:
    args = ("-m", folder / "model", "--patch", 64, "--tile", 128, "--keep")
    assert cli("segment", folder / name, *args, "-o", tmp_path / "here")[0] == 0
    code, out, err = cli("segment", server.url(name) + QUERY, *args, "-o", tmp_path / "there", "--allow-loopback")
    assert code == 0, err
    assert sha256(tmp_path / "there" / "mask.tif") == sha256(tmp_path / "here" / "mask.tif")
    assert CANARY not in out + err
    written = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    server.misbehave("403")
    code, _, err = cli("segment", server.url(name) + QUERY, *args, "-o", tmp_path / "2", "--allow-loopback")
    assert code == 8
    assert_block(err, "ST-010")


def test_netcdf_in_a_bucket(folder: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    access = Access(endpoint=endpoint, retries=0)
    Bucket(BUCKET, access).put_file("deep/four.nc", folder / "four.nc")
    here = sm.open_scene(folder / "four.nc")
    there = pickle.loads(pickle.dumps(sm.open_scene(f"s3://{BUCKET}/deep/four.nc", access=access)))
    assert np.array_equal(there.read(WINDOW), here.read(WINDOW))
    assert (there.geobox, there.bands) == (here.geobox, here.bands)
    with pytest.raises(InputError, match="IN-040"):
        sm.open_scene(f"s3://{BUCKET}/deep/none.nc", access=access)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InfrastructureError):
        sm.open_scene(f"s3://{BUCKET}-of-others/deep/four.nc", access=access)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("version", [2, 3])
def test_a_group_in_a_group(
    tmp_path: Path, endpoint: str, version: Literal[2, 3], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As products of ESA's are: a group for each resolution, and metadata that tell of all at the outermost."""
    path = tmp_path / "product.zarr"
    zarr.open_group(path, mode="w", zarr_format=version)
    for name, values in (("r10m", smooth_values(2, SHAPE)), ("r20m", smooth_values(2, (200, 250), seed=2))):
        made = dataset(values=values, names=("b0", "b1"))
        made.to_zarr(path, group=f"measurements/{name}", zarr_format=version, consolidated=False)
    zarr.consolidate_metadata(str(path))
    here = sm.open_scene(path / "measurements" / "r20m")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(BUCKET, Access(endpoint=endpoint))
    for file in path.rglob("*"):
        if file.is_file():
            bucket.put(f"deep{version}/{file.relative_to(tmp_path)}", file.read_bytes())
    with RangeServer(tmp_path) as server:
        for where, access in (
            (server.url(f"product.zarr/measurements/r20m{QUERY}"), PATIENT),
            (f"s3://{BUCKET}/deep{version}/product.zarr/measurements/r20m/", Access(endpoint=endpoint)),
        ):
            there = pickle.loads(pickle.dumps(sm.open_scene(where, access=access)))
            assert np.array_equal(there.read(WINDOW), here.read(WINDOW))
            assert (there.geobox, there.bands, there.name) == (here.geobox, here.bands, "r20m")
            assert there.fingerprint() == there.fingerprint()
            assert CANARY not in str(there.path)
        with pytest.raises(InputError, match="IN-005"):
            sm.open_scene(server.url("product.zarr/measurements/r60m"), access=PATIENT)


def test_what_cannot_be_read_from_there_is_refused(folder: Path, server: RangeServer, tmp_path: Path) -> None:
    dataset().astype("int16").to_netcdf(folder / "classic.nc", engine="scipy")
    with pytest.raises(InputError, match="IN-014"):
        sm.open_scene(server.url("classic.nc"), access=PATIENT)
    dataset().to_zarr(folder / "unlisted.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(InputError, match="IN-061"):
        sm.open_scene(server.url("unlisted.zarr"), access=PATIENT)
    with pytest.raises(InputError, match="IN-005"):
        sm.open_scene(server.url("none.zarr"), access=PATIENT)
    (folder / "page.nc").write_text("<html>")
    with pytest.raises(InputError, match="IN-002"):
        sm.open_scene(server.url("page.nc"), access=PATIENT)
    (folder / "cut.nc").write_bytes((folder / "four.nc").read_bytes()[:5000])
    with pytest.raises(InputError, match="IN-005"):
        sm.open_scene(server.url("cut.nc"), access=PATIENT)
