"""Results in a bucket: the same bytes, all at once, resumable, and nothing left behind."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import boto3
import pytest

import pipeline as sm
from pipeline.access import Access
from pipeline.bucket import Bucket
from pipeline.errors import InfrastructureError, OutputError, UsageError
from pipeline.run.events import StageStarted
from pipeline.run.output import BucketOutput, output_at
from pipeline.store.object_lock import BucketLock
from tests.commands import Cli, assert_block
from tests.infra.fault_proxy import FaultProxy
from tests.infra.moto_server import BUCKET, KEYS, SECRET, moto_server, objects
from tests.scenes import save_threshold_model, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHAPE = (233, 301)
OPTIONS: dict[str, Any] = {"patch": 64, "tile": 64}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, a model, and the result on disk."""
    base = tmp_path_factory.mktemp("bucket")
    write_scene(base / "scene.tif", smooth_values(2, SHAPE), nodata=0, names=("b0", "b1"))
    save_threshold_model(base / "model")
    sm.segment(base / "scene.tif", base / "model", base / "local", **OPTIONS)
    return base


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name.partition('[')[0]}"


def run(folder: Path, prefix: str, endpoint: str, **more: Any) -> Any:
    return sm.segment(folder / "scene.tif", folder / "model", prefix, **{"endpoint": endpoint, **OPTIONS, **more})


def test_results_are_those_of_a_folder(folder: Path, prefix: str, endpoint: str, tmp_path: Path, cli: Cli) -> None:
    args = ("segment", folder / "scene.tif", "-m", folder / "model", "-o", prefix, "--endpoint", endpoint)
    code, out, err = cli(*args, "--patch", 64, "--tile", 64, "--scratch", tmp_path)
    assert code == 0, err
    assert f"{prefix}/mask.tif" in out
    there = objects(endpoint, prefix)
    names = {path.name for path in (folder / "local").iterdir()}
    assert there.keys() == names
    for name in names - {"run.json", "item.json", "preview.png"}:
        assert there[name] == (folder / "local" / name).read_bytes()
    record = json.loads(there["run.json"])
    assert record["files"]["mask.tif"]["sha256"] == sha256(folder / "local" / "mask.tif")
    assert not any(SECRET.encode() in data for data in there.values())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    code, out, err = cli(*args, "--json")
    assert code == 0
    assert "nothing to do" not in out
    assert json.loads(out)["identity"] == record["identity"]


def test_a_rerun_does_nothing_and_a_change_is_noticed(folder: Path, prefix: str, endpoint: str) -> None:
    assert not run(folder, prefix, endpoint).resumed
    again = run(folder, prefix, endpoint)
    assert again.resumed
    assert str(again.mask_path) == f"{prefix}/mask.tif"
    with pytest.raises(OutputError, match="OU-011"):
        run(folder, prefix, endpoint, taper="linear")
    bucket = Bucket(BUCKET, Access(endpoint=endpoint))
    mask = f"{prefix}/mask.tif".removeprefix(f"s3://{BUCKET}/")
    bucket.put(mask, b"x" * bucket.head(mask).size)
    with pytest.raises(OutputError, match="OU-012"):
        run(folder, prefix, endpoint)
    assert not run(folder, prefix, endpoint, overwrite=True).resumed
    assert objects(endpoint, prefix)["mask.tif"] == (folder / "local" / "mask.tif").read_bytes()


def test_b7_results_of_something_else_are_left_alone(folder: Path, prefix: str, endpoint: str) -> None:
    bucket = Bucket(BUCKET, Access(endpoint=endpoint))
    bucket.put(f"{prefix}/mask.tif".removeprefix(f"s3://{BUCKET}/"), b"somebody else's")
    with pytest.raises(OutputError, match="OU-001"):
        run(folder, prefix, endpoint)
    assert objects(endpoint, prefix) == {"mask.tif": b"somebody else's"}


def test_overwriting_removes_what_the_new_run_did_not_make(folder: Path, prefix: str, endpoint: str) -> None:
    run(folder, prefix, endpoint, vectors="geojson,gpkg")
    run(folder, prefix, endpoint, vectors="fgb", overwrite=True)
    names = objects(endpoint, prefix).keys()
    assert {name for name in names if name.startswith("polygons")} == {"polygons.fgb"}


def test_b20_a_failed_upload_leaves_no_parts_and_the_same_command_continues(
    folder: Path, prefix: str, endpoint: str, tmp_path: Path
) -> None:
    """Nothing is half there, no multipart upload stays open, tiles are kept."""
    bucket = Bucket(BUCKET, Access(endpoint=endpoint))
    key = f"{prefix}/large.bin".removeprefix(f"s3://{BUCKET}/")
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(20 * 2**20))
    with FaultProxy(endpoint) as proxy:
        spoiled = Bucket(BUCKET, Access(endpoint=proxy.endpoint, retries=1))
        proxy.spoils = lambda method, path: method == "PUT" and "partNumber=2" in path
        with pytest.raises(InfrastructureError, match="ST-011"):
            spoiled.put_file(key, large)
        assert boto3.client("s3", endpoint_url=endpoint).list_multipart_uploads(Bucket=BUCKET).get("Uploads") is None
        assert objects(endpoint, prefix) == {}
        proxy.spoils = lambda method, path: method == "PUT" and "partNumber=2" in path and _first(proxy, path)
        spoiled.put_file(key, large)  # a passing trouble is tried again
        assert bucket.get(key)[0] == large.read_bytes()
        bucket.delete(key)

        proxy.spoils = lambda method, path: method == "PUT" and path.endswith("preview.png")
        with pytest.raises(InfrastructureError, match="ST-011"):
            run(folder, prefix, endpoint=proxy.endpoint, retries=0, scratch=tmp_path)
        assert "run.json" not in objects(endpoint, prefix)
        proxy.spoils = lambda _method, _path: False
        before = len(proxy.requests)
        events: list[Any] = []
        run(folder, prefix, endpoint=proxy.endpoint, scratch=tmp_path, listener=events.append)
        started = next(e for e in events if isinstance(e, StageStarted) and e.name == "infer")
        assert started.done == started.total > 4
        sent = [path for method, path in proxy.requests[before:] if method == "PUT"]
        assert sent[-1].endswith("run.json")
    assert objects(endpoint, prefix)["mask.tif"] == (folder / "local" / "mask.tif").read_bytes()


def _first(proxy: FaultProxy, path: str) -> bool:
    return sum("partNumber=2" in seen and seen == path for _, seen in proxy.requests) == 1


def test_b21_nothing_is_ever_listed(folder: Path, prefix: str, endpoint: str) -> None:
    with FaultProxy(endpoint) as proxy:
        run(folder, prefix, endpoint=proxy.endpoint)
        run(folder, prefix, endpoint=proxy.endpoint, overwrite=True)
        assert run(folder, prefix, endpoint=proxy.endpoint).resumed
        assert proxy.requests
        assert not [path for method, path in proxy.requests if method == "GET" and "list-type" in path]


def test_the_old_record_goes_first_and_the_new_one_comes_last(folder: Path, prefix: str, endpoint: str) -> None:
    with FaultProxy(endpoint) as proxy:
        run(folder, prefix, endpoint=proxy.endpoint)
        proxy.requests.clear()
        run(folder, prefix, endpoint=proxy.endpoint, overwrite=True)
        writes = [
            path
            for method, path in proxy.requests
            if method in {"PUT", "POST", "DELETE"} and not path.endswith("lock.json")
        ]
    assert ["delete" in path for path in writes] == [True, *[False] * (len(writes) - 2), True]  # the last is the lock's
    assert [path.endswith("run.json") for path in writes[1:-1]] == [*[False] * (len(writes) - 3), True]


def test_a_scene_among_the_results_is_refused(folder: Path, prefix: str, endpoint: str) -> None:
    with pytest.raises(UsageError, match="CF-008"):
        sm.segment(f"{prefix}/mask.tif", folder / "model", prefix, endpoint=endpoint)
    with pytest.raises(UsageError, match="CF-008"):
        sm.segment([folder / "scene.tif", f"{prefix}/mask.tif"], folder / "model", prefix, endpoint=endpoint)


@pytest.mark.parametrize("out", ["https://host/out", "gs://bucket/out", "s3://x/out"])
def test_other_places_cannot_be_written(folder: Path, out: str, cli: Cli) -> None:
    code, _, err = cli("segment", folder / "scene.tif", "-m", folder / "model", "-o", out)
    assert code == 2
    assert_block(err, "CF-050")


def test_the_same_command_finds_its_folder_and_another_endpoint_does_not(tmp_path: Path) -> None:
    def made(place: str, **options: Any) -> Path:
        output = output_at(place, Access(**options), tmp_path)
        assert isinstance(output, BucketOutput)
        return output.folder

    assert made("s3://bucket/a") == made("s3://bucket/a")
    assert len({made("s3://bucket/a"), made("s3://bucket/b"), made("s3://bucket/a", endpoint="http://h:1")}) == 3
    assert made("s3://bucket/a").stat().st_mode & 0o777 == 0o700


def test_masks_in_a_bucket_become_polygons_there(folder: Path, prefix: str, endpoint: str, cli: Cli) -> None:
    bucket, start = Bucket(BUCKET, Access(endpoint=endpoint)), prefix.removeprefix(f"s3://{BUCKET}/")
    for name in ("mask.tif", "mask.tif.aux.xml"):
        bucket.put_file(f"{start}/{name}", folder / "local" / name)
    args = ("vectorize", f"{prefix}/mask.tif", "-o", f"{prefix}/x.geojson", "--endpoint", endpoint)
    code, out, err = cli(*args)
    assert code == 0, err
    assert out.rstrip().endswith(f"-> {prefix}/x.geojson")
    local = folder / "x.geojson"
    code, _, _ = cli("vectorize", folder / "local" / "mask.tif", "-o", local)
    assert objects(endpoint, prefix)["x.geojson"] == local.read_bytes()
    code, _, err = cli(*args)
    assert code == 5
    assert_block(err, "OU-030")
    assert cli(*args, "--overwrite", "-q")[0] == 0
    code, _, err = cli(
        "vectorize", f"{prefix}/none.tif", "-o", f"{prefix}/x.geojson", "--endpoint", endpoint, "--overwrite"
    )
    assert code == 3
    assert_block(err, "IN-040")
    assert objects(endpoint, prefix)["x.geojson"] == local.read_bytes()


def test_an_array_needs_a_folder(folder: Path, prefix: str, cli: Cli) -> None:
    code, _, err = cli("batch", folder / "scene.tif", "-m", folder / "model", "-o", prefix, "--array", 2)
    assert code == 2
    assert_block(err, "CF-055")


def test_t13_a_batch_takes_no_signatures(folder: Path, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("batch", "https://host/a.tif?sig=canary", "-m", folder / "model", "-o", tmp_path / "out")
    assert code == 2
    assert_block(err, "CF-056")
    assert "canary" not in err
    assert not (tmp_path / "out").exists()


def test_b8_two_machines_do_not_write_at_once(
    folder: Path, prefix: str, endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = Bucket(BUCKET, Access(endpoint=endpoint))
    key = f"{prefix}/.scenemask/lock.json".removeprefix(f"s3://{BUCKET}/")
    with BucketLock(bucket, key), pytest.raises(OutputError, match="OU-002"):
        run(folder, prefix, endpoint, scratch=tmp_path)
    assert objects(endpoint, prefix) == {}
    assert not run(folder, prefix, endpoint, scratch=tmp_path).resumed
    assert not any(name.startswith(".scenemask") for name in objects(endpoint, prefix))


@pytest.mark.parametrize("scratch", ["https://host/x", "gs://bucket/x", "s3://x/y"])
def test_scratch_is_a_folder_or_a_prefix(folder: Path, scratch: str, cli: Cli) -> None:
    code, _, err = cli("segment", folder / "scene.tif", "-m", folder / "model", "-o", "x", "--scratch", scratch)
    assert code == 2
    assert_block(err, "CF-005")
