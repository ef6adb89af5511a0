"""Scenes in a bucket and behind a web server, from the command line: the same bytes, and no secret in any of them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pipeline as sm
from pipeline.access import Access
from pipeline.bucket import Bucket
from pipeline.scene import close_all
from tests.commands import Cli, assert_block
from tests.infra.moto_server import BUCKET, KEYS, SECRET, moto_server
from tests.infra.range_server import RangeServer
from tests.scenes import save_threshold_model, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "canary-of-the-query"
SHAPE = (233, 301)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    yield
    close_all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, a model, and the result of the scene on disk."""
    base = tmp_path_factory.mktemp("remote")
    data = smooth_values(2, SHAPE)
    data[:, :40, :90] = 0
    write_scene(base / "scene.tif", data, nodata=0, names=("b0", "b1"), tiled=True, blockxsize=64, blockysize=64)
    save_threshold_model(base / "model")
    sm.segment(base / "scene.tif", base / "model", base / "local", patch=64, tile=64)
    return base


def canaries(*folders: Path) -> list[str]:
    """Files below the folders that hold a secret."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in (CANARY, SECRET))]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_scene_in_a_bucket_gives_the_same_bytes(
    folder: Path, tmp_path: Path, endpoint: str, workers: int, cli: Cli
) -> None:
    Bucket(BUCKET, Access(endpoint=endpoint)).put_file("in/scene.tif", folder / "scene.tif")
    args = ("segment", f"s3://{BUCKET}/in/scene.tif", "-m", folder / "model", "-o", tmp_path / "out", "--patch", 64)
    code, out, err = cli(*args, "--tile", 64, "--endpoint", endpoint, "--keep", "--workers", workers)
    assert code == 0, err
    assert sha256(tmp_path / "out" / "mask.tif") == sha256(folder / "local" / "mask.tif")
    assert sha256(tmp_path / "out" / "polygons.geojson") == sha256(folder / "local" / "polygons.geojson")
    assert SECRET not in out + err
    assert canaries(tmp_path) == []
    code, out, _ = cli(*args, "--endpoint", endpoint, "--json")
    assert code == 0
    assert json.loads(out)["identity"]["scene"]["etag"]


def test_t13_a_signed_address_leaves_no_trace(folder: Path, tmp_path: Path, cli: Cli) -> None:
    with RangeServer(folder) as server:
        where = server.url(f"scene.tif?X-Amz-Signature={CANARY}&sig={CANARY}")
        args = (where, "-m", folder / "model", "--patch", "64", "--allow-loopback", "--retries", 1)
        code, out, err = cli("segment", *args, "-o", tmp_path / "out", "--tile", 64, "--keep", "-v")
        assert code == 0, err
        assert sha256(tmp_path / "out" / "mask.tif") == sha256(folder / "local" / "mask.tif")
        said = out + err
        for command in (
            ("inspect", where, "--allow-loopback"),
            ("plan", *args),
            ("inspect", where),
            ("segment", *args),
        ):
            _, out, err = cli(*command, *(("-o", tmp_path / "2") if command[0] == "segment" else ()), "--json")
            said += out + err
        for fault in ("403", "503", "short", "whole"):
            server.misbehave(fault, after=4)
            code, out, err = cli("segment", *args, "-o", tmp_path / fault, "--read-timeout", 2)
            assert_block(err, "IN-042" if fault == "whole" else "ST-01")
            assert code == (3 if fault == "whole" else 8)
            said += out + err
    assert CANARY not in said
    assert canaries(tmp_path) == []


def test_c41_a_fresh_signature_continues_a_run(folder: Path, tmp_path: Path) -> None:
    def expire(event: object) -> None:
        if type(event).__name__ == "StageStarted" and getattr(event, "name", "") == "infer":
            server.misbehave("403", after=3)

    with RangeServer(folder) as server:

        def run(signature: str, **options: Any) -> sm.RunResult:
            where, given = server.url(f"scene.tif?sig={signature}"), {"patch": 64, "tile": 64, "allow_loopback": True}
            return sm.segment(where, folder / "model", tmp_path / "out", **given, **options)

        with pytest.raises(sm.PipelineError, match="ST-010"):
            run("expired", listener=expire)
        assert (tmp_path / "out" / ".scenemask" / "plan.json").exists()
        server.misbehave("")
        assert run("fresh").mask_path == tmp_path / "out" / "mask.tif"
    assert sha256(tmp_path / "out" / "mask.tif") == sha256(folder / "local" / "mask.tif")


def test_t13_a_traceback_holds_no_secret(
    folder: Path, tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    with RangeServer(folder) as server:
        server.misbehave("403")
        with pytest.raises(sm.PipelineError) as caught:
            cli("inspect", server.url(f"scene.tif?sig={CANARY}"), "--allow-loopback", "--debug")
    error = RuntimeError(f"GDAL says /vsicurl/http://h/a.tif?sig={CANARY}")
    error.__cause__ = caught.value
    sys.excepthook(RuntimeError, error, caught.tb)
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert CANARY not in printed


def test_c38_a_scene_that_changes_during_the_run_is_refused(folder: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "scene.tif"
    path.write_bytes((folder / "scene.tif").read_bytes())
    other = write_scene(tmp_path / "other.tif", smooth_values(2, SHAPE, seed=3), nodata=0, names=("b0", "b1"))

    def change(event: object) -> None:
        if type(event).__name__ == "StageStarted" and getattr(event, "name", "") == "polygons":
            path.write_bytes(other.read_bytes())

    with RangeServer(tmp_path / "files") as server:
        with pytest.raises(sm.PipelineError, match="OU-013"):
            sm.segment(
                server.url("scene.tif"), folder / "model", tmp_path / "out", allow_loopback=True, listener=change
            )
        assert not (tmp_path / "out" / "mask.tif").exists()
        with pytest.raises(sm.PipelineError, match="scene etag"):
            sm.segment(server.url("scene.tif"), folder / "model", tmp_path / "out", allow_loopback=True)


def test_403_and_404_say_what_to_do(endpoint: str, cli: Cli) -> None:
    code, _, err = cli("inspect", f"s3://{BUCKET}/none.tif", "--endpoint", endpoint)
    assert code == 3
    assert_block(err, "IN-040")
    code, _, err = cli("inspect", "s3://nobody-has-this/none.tif", "--endpoint", endpoint)
    assert code in {3, 8}
    code, _, err = cli("inspect", "ftp://bucket/a.tif")
    assert code == 2
    assert_block(err, "CF-050")


def test_without_the_extra_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    code, _, err = cli("inspect", f"s3://{BUCKET}/none.tif")
    assert code == 2
    assert 'pip install "scenemask[s3]"' in err


def test_predict_reads_it_too(folder: Path) -> None:
    with RangeServer(folder) as server:
        there = sm.open_scene(server.url("scene.tif"), access=Access(allow_loopback=True))
        p = sm.predict(there, folder / "model", patch=64).compute()
    local = sm.predict(folder / "scene.tif", folder / "model", patch=64).compute()
    assert np.array_equal(p.to_numpy(), local.to_numpy(), equal_nan=True)
