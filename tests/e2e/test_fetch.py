"""C38: files that are fetched whole are of one version, or are refused; half of one is never left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.access import Access
from pipeline.bucket import Bucket
from pipeline.errors import InputError
from pipeline.run import fetch
from tests.infra.fault_proxy import FaultProxy
from tests.infra.moto_server import BUCKET, KEYS, moto_server
from tests.infra.range_server import RangeServer

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = b"a" * 1000, b"b" * 1000


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_PART_BYTES", 300)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def _fetched(address: str, access: Access, path: Path) -> bytes:
    with fetch.workplace(access) as work:
        return work.local(address).read_bytes()


@pytest.mark.parametrize("etags", [True, False])
def test_from_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, etags: bool) -> None:
    """It is replaced by one of the same size before the third part is asked for; told by ETag, or by its time."""
    file = tmp_path / "mask.tif"
    file.write_bytes(OLD)
    os.utime(file, (1e9, 1e9))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with RangeServer(tmp_path) as server:
        server.etags = etags
        access = Access(allow_loopback=True)
        assert _fetched(server.url("mask.tif"), access, tmp_path) == OLD
        answer = server.next_fault

        def replacing(*request: Any) -> str:
            if len(server.requests) == 3:
                file.write_bytes(NEW)
            return answer(*request)

        monkeypatch.setattr(server, "next_fault", replacing)
        server.requests.clear()
        with pytest.raises(InputError, match="IN-015"):
            _fetched(server.url("mask.tif"), access, tmp_path)
        assert _fetched(server.url("mask.tif"), access, tmp_path) == NEW
    assert list(tmp_path.iterdir()) == [file]


def test_from_a_bucket(tmp_path: Path) -> None:
    """Replaced between the look and the first part, or the last; and what is missing leaves nothing."""
    with moto_server() as endpoint, FaultProxy(endpoint) as proxy:
        there, access = Bucket(BUCKET, Access(endpoint=endpoint)), Access(endpoint=proxy.endpoint, retries=0)
        for parts_before in (0, 3):
            there.put("mask.tif", OLD)
            proxy.requests.clear()

            def replaces(method: str, path: str, before: int = parts_before) -> bool:
                gets = [one for one in proxy.requests if one[0] == "GET"]
                if method == "GET" and len(gets) == before + 2 and "mask.tif" in path:  # the first asks for its facts
                    there.put("mask.tif", NEW)
                return False

            proxy.spoils = replaces
            with pytest.raises(InputError, match="IN-015"), fetch.workplace(access) as work:
                work.fetch(_location("mask.tif"), tmp_path / "copy")
            assert there.get("mask.tif")[0] == NEW
            assert not (tmp_path / "copy").exists()
        with fetch.workplace(access) as work:
            work.fetch(_location("mask.tif"), tmp_path / "copy")
            work.fetch(_location("none.tif"), tmp_path / "none")
    assert (tmp_path / "copy").read_bytes() == NEW
    assert not (tmp_path / "none").exists()


def _location(name: str) -> Any:
    return fetch.parse_location(f"s3://{BUCKET}/{name}")
