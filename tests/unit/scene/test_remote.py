"""Scenes behind a web server that misbehaves, and in a bucket: rows C38 to C42 and T5 of the catalogue of faults."""

from __future__ import annotations

import base64
import pickle
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pytest

from pipeline.access import Access
from pipeline.errors import InfrastructureError, InputError, PipelineError
from pipeline.grid import Window
from pipeline.scene import close_all, decode_on, open_scene
from pipeline.scene.raster import RasterScene
from pipeline.scene.remote import _check_address, parse_location
from tests.infra.range_server import RangeServer
from tests.scenes import smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (300, 420)
WHOLE = Window(row_off=0, col_off=0, height=SHAPE[0], width=SHAPE[1])
STALL_S = 1.0
KINDS = ["http", "s3", "gs", "az"]


@pytest.fixture(scope="module")
def values() -> NDArray[np.uint16]:
    return smooth_values(2, SHAPE)


@pytest.fixture
def server(values: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0000000000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-key")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "me")
    monkeypatch.setenv("AZURE_STORAGE_ACCESS_KEY", base64.b64encode(b"canary-key").decode())
    (tmp_path / "bucket").mkdir()
    (tmp_path / "me").symlink_to(tmp_path)  # Azure's account, the first part of the path where the host is not its own
    write_scene(tmp_path / "bucket" / "a.tif", values, nodata=0, tiled=True, blockxsize=64, blockysize=64)
    decode_on(2)  # as workers do: behind a server GDAL would give wrong pixels for a request that failed, and no error
    with RangeServer(tmp_path) as running:
        yield running
    close_all()
    decode_on(1)


def place(server: RangeServer, kind: str) -> str:
    return server.url("bucket/a.tif?sig=canary") if kind == "http" else f"{kind}://bucket/a.tif"


def access(server: RangeServer, **options: float) -> Access:
    patience: dict[str, float] = {"retries": 1, "connect_s": 1, "stall_s": STALL_S, **options}
    return Access(endpoint=server.url("").rstrip("/"), allow_loopback=True, **patience)  # type: ignore[arg-type]


def opened(server: RangeServer, kind: str, **options: float) -> RasterScene:
    scene = open_scene(place(server, kind), access=access(server, **options))
    assert isinstance(scene, RasterScene)
    return scene


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_behind_a_server_is_the_scene(
    server: RangeServer, values: NDArray[np.uint16], tmp_path: Path, kind: str
) -> None:
    scene = opened(server, kind)
    local = open_scene(tmp_path / "bucket" / "a.tif")
    travelled = pickle.loads(pickle.dumps(scene))
    assert (travelled.read(WHOLE) == values).all()
    assert (scene.geobox, scene.bands, scene.nodata, scene.name) == (local.geobox, local.bands, local.nodata, "a")
    told = scene.fingerprint()
    assert told.items() >= {"file": "a.tif", "digest": local.fingerprint()["digest"], "bands": [1, 2]}.items()
    assert told["etag"]
    assert "canary" not in f"{scene!r} {scene.path} {told}"
    # Nothing beside the scene was asked for.
    assert {unquote(path.partition("?")[0]).removeprefix("/me") for _, path, _ in server.requests} == {"/bucket/a.tif"}


OPENING = [
    ("404", "IN-040", 3), ("403", "ST-010", 8), ("503", "ST-011", 8), ("short", "ST-013", 8), ("429", "ST-011", 8),
    ("500", "ST-011", 8), ("wrong-range", "ST-011", 8), ("hang", "ST-012", 8), ("drip", "ST-012", 8),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fault", "code", "exit_code"),
    [(kind, *one) for kind in KINDS for one in (OPENING if kind in {"http", "s3"} else OPENING[:4])],
)
def test_c39_c40_c41_faults_at_opening(server: RangeServer, kind: str, fault: str, code: str, exit_code: int) -> None:
    server.misbehave(fault)
    started = time.monotonic()
    with pytest.raises(PipelineError) as caught:
        opened(server, kind)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert time.monotonic() - started < 2 * STALL_S + 1
    assert "canary" not in caught.value.block()
    if fault in {"404", "403"}:
        assert len(server.requests) == 1  # asking again would help nobody


MIDDLE = [("404", "IN-040"), ("403", "ST-010"), ("503", "ST-011"), ("short", "ST-013"), ("hang", "ST-012"),
          ("drip", "ST-012")]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fault", "code"),
    [(kind, *one) for kind in KINDS for one in (MIDDLE if kind in {"http", "s3"} else MIDDLE[:4:2])],
)
def test_c39_c40_c41_faults_in_the_middle(server: RangeServer, kind: str, fault: str, code: str) -> None:
    stall_s = 2.0  # GDAL counts whole seconds, and asks up to three times
    scene = opened(server, kind, stall_s=stall_s)
    scene.read(Window(row_off=0, col_off=0, height=8, width=8))
    server.misbehave(fault)
    started = time.monotonic()
    with pytest.raises(PipelineError) as caught:
        scene.read(WHOLE)
    assert caught.value.code == code
    assert time.monotonic() - started < 2 * stall_s + 1
    assert "canary" not in caught.value.block()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["429", "503", "short"])
def test_c39_c40_passing_faults_change_nothing(
    server: RangeServer, values: NDArray[np.uint16], kind: str, fault: str
) -> None:
    server.misbehave(fault, times=1)
    scene = opened(server, kind)
    scene.read(Window(row_off=0, col_off=0, height=8, width=8))
    server.misbehave(fault, times=1)  # meets GDAL: the file is open, and most of it was not read yet
    assert (scene.read(WHOLE) == values).all()
    assert server.times <= 0


@pytest.mark.parametrize("kind", KINDS)
def test_c38_another_version_of_the_file_is_noticed(
    server: RangeServer, values: NDArray[np.uint16], tmp_path: Path, kind: str
) -> None:
    scene = opened(server, kind)
    before = scene.fingerprint()
    assert (scene.read(WHOLE) == values).all()
    write_scene(tmp_path / "bucket" / "a.tif", values[:, ::-1], nodata=0, tiled=True, blockxsize=64, blockysize=64)
    assert scene.fingerprint() != before
    close_all()
    with pytest.raises(InputError, match="IN-015"):
        scene.read(WHOLE)
    # A new look in the same process gets the new pixels, not what GDAL kept of the old ones.
    assert (opened(server, kind).read(WHOLE) == values[:, ::-1]).all()


def test_a_server_without_parts_is_refused(server: RangeServer) -> None:
    server.misbehave("whole")
    with pytest.raises(InputError, match="IN-042"):
        opened(server, "http")


def test_what_is_no_raster_is_refused_by_its_first_bytes(server: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "bucket" / "a.tif").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>")
    with pytest.raises(InputError, match="IN-014"):
        opened(server, "http")


def test_c2_a_cut_file_is_found_at_once(server: RangeServer, tmp_path: Path) -> None:
    path = tmp_path / "bucket" / "a.tif"
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(InputError, match="IN-004"):
        opened(server, "http")


def test_t5_this_machine_only_when_permitted(server: RangeServer) -> None:
    with pytest.raises(InputError, match="IN-041") as caught:
        open_scene(place(server, "http"))
    assert "--allow-loopback" in caught.value.fix
    assert not server.requests


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/", "http://0.0.0.0/a.tif", "file:///etc/passwd",
     "http://100.100.100.200/", "http://[::ffff:169.254.169.254]/a.tif", "http://2852039166/a.tif"],
)  # fmt: skip
def test_t5_redirections_to_services_of_machines_are_not_followed(server: RangeServer, target: str) -> None:
    server.misbehave("redirect", target=target)
    with pytest.raises(InputError, match="IN-041"):
        opened(server, "http")
    assert len(server.requests) == 1


def test_t5_redirections_elsewhere_are_followed_and_end(server: RangeServer, values: NDArray[np.uint16]) -> None:
    server.misbehave("redirect", target=server.url("bucket/b.tif"))
    with pytest.raises(InputError, match="more than 5 times"):
        opened(server, "http")
    server.misbehave("")
    with RangeServer(server.folder) as front:
        front.misbehave("redirect", target=server.url("bucket/a.tif"))
        assert (open_scene(front.url("old.tif"), access=access(server)).read(WHOLE) == values).all()


def test_t5_from_outside_no_redirection_leads_inside() -> None:
    inside, outside = (parse_location(f"http://{host}/a.tif") for host in ("10.1.2.3", "9.9.9.9"))
    with pytest.raises(InputError, match="private network"):
        _check_address(inside, Access(), redirected_from_outside=True)
    assert _check_address(inside, Access(), redirected_from_outside=False)  # given by a person
    _check_address(outside, Access(), redirected_from_outside=True)


def test_no_server_at_all() -> None:
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match="ST-012"):
        open_scene("http://127.0.0.1:9/a.tif", access=Access(allow_loopback=True, retries=1))
    assert time.monotonic() - started < 5


def test_c42_another_region_says_which_option(server: RangeServer) -> None:
    server.misbehave("redirect")
    with pytest.raises(InfrastructureError) as caught:
        opened(server, "s3")
    assert "AWS_REGION" in caught.value.fix
