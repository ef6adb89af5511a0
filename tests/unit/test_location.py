from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pipeline import keys
from pipeline.access import Access
from pipeline.bucket import Bucket
from pipeline.errors import UsageError
from pipeline.location import Location, is_remote, parse_location


@pytest.mark.parametrize(
    ("text", "shown", "name", "suffix"),
    [
        ("s3://bucket/a/b.TIF", "s3://bucket/a/b.TIF", "b.TIF", ".tif"),
        ("S3://bucket/a b/ü?x.tif", "s3://bucket/a b/ü?x.tif", "ü?x.tif", ".tif"),
        ("https://host:8443/a/b.tif?sig=1#frag", "https://host:8443/a/b.tif", "b.tif", ".tif"),
        ("http://host", "http://host/", "", ""),
        (Path("s3://bucket/a.tif"), "s3://bucket/a.tif", "a.tif", ".tif"),
    ],
)
def test_addresses_are_understood(text: str | Path, shown: str, name: str, suffix: str) -> None:
    location = parse_location(text)
    assert (str(location), location.name, location.suffix) == (shown, name, suffix)
    assert pickle.loads(pickle.dumps(location)) == location


def test_a_query_is_asked_for_but_never_shown() -> None:
    location = parse_location("https://host/a b.tif?sig=canary&se=2")
    assert location.target == "/a%20b.tif?sig=canary&se=2"
    assert "canary" not in f"{location} {location!r}"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("ftp://bucket/a.tif", "CF-050"),
        ("s3://", "CF-050"),
        ("s3://b/a.tif", "CF-050"),
        ("https:///a.tif", "CF-050"),
        ("https://host:port/a.tif", "CF-050"),
        ("https://host/a\n.tif", "CF-050"),
        ("https://me:canary@host/a.tif", "CF-051"),
    ],
)
def test_other_addresses_are_refused(text: str, code: str) -> None:
    assert is_remote(text)
    with pytest.raises(UsageError, match=code) as caught:
        parse_location(text)
    assert "canary" not in caught.value.block()


@pytest.mark.parametrize("text", ["a.tif", "/a/b.tif", "C:/a.tif", "s3.tif", "dir/s3:x", Path("x")])
def test_paths_are_no_addresses(text: str | Path) -> None:
    assert not is_remote(text)


def test_a_name_under_a_prefix() -> None:
    assert str(Location("s3", "bucket", "out/").child("mask.tif")) == "s3://bucket/out/mask.tif"
    assert str(Location("s3", "bucket", "").child("mask.tif")) == "s3://bucket/mask.tif"


def test_one_endpoint_is_spelled_for_three_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    access = Access(endpoint="http://127.0.0.1:9000/").resolved()
    gdal = access.gdal_options(Location("s3", "bucket", "a.tif"))
    assert gdal.items() >= {
        "AWS_S3_ENDPOINT": "127.0.0.1:9000", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
    }.items()  # fmt: skip
    assert access.obstore_options()["endpoint"] == "http://127.0.0.1:9000"
    assert access.botocore_options() == {"endpoint_url": "http://127.0.0.1:9000"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://storage.example.org")
    assert Access().resolved().endpoint_of("s3") == "https://storage.example.org"
    assert Access().resolved().endpoint_of("gs") is None
    assert access.resolved() == access


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", "http://me:canary@host", "http://host/bucket"])
def test_other_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="CF-054") as caught:
        Access(endpoint=endpoint).resolved()
    assert "canary" not in caught.value.block()


def test_keys_come_from_environment_or_profile_else_requests_are_unsigned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setattr("pipeline.keys._machine_is_of", lambda _: False)
    assert keys.is_anonymous()
    assert Access().obstore_options()["skip_signature"]
    (tmp_path / "credentials").write_text("[me]\naws_access_key_id = A\naws_secret_access_key = B\n")
    (tmp_path / "config").write_text("[profile me]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_PROFILE", "me")
    found = Access().obstore_options()
    assert (found["access_key_id"], found["secret_access_key"], found["region"]) == ("A", "B", "eu-north-1")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert Access().gdal_options(Location("s3", "b", "k"))["AWS_NO_SIGN_REQUEST"] == "YES"


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_", "GS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setattr("pipeline.keys._machine_is_of", lambda _: False)


KEY_AS_JSON = '{"client_email": "a@b", "private_key": "canary"}'


@pytest.mark.usefixtures("no_keys")
@pytest.mark.parametrize(
    ("scheme", "environment", "gdal", "obstore"),
    [
        ("gs", {}, {"GS_NO_SIGN_REQUEST": "YES"}, {"skip_signature": True}),
        *(
            ("gs", {name: "/f"}, {"GOOGLE_APPLICATION_CREDENTIALS": "/f"}, {"application_credentials": "/f"})
            for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT")
        ),
        (
            "gs",
            {"GOOGLE_SERVICE_ACCOUNT_KEY": KEY_AS_JSON},
            {"GS_OAUTH2_PRIVATE_KEY": "canary", "GS_OAUTH2_CLIENT_EMAIL": "a@b"},
            {"service_account_key": KEY_AS_JSON},
        ),
        (
            "az",
            {"AZURE_STORAGE_ACCOUNT": "me"},
            {"AZURE_STORAGE_ACCOUNT": "me", "AZURE_NO_SIGN_REQUEST": "YES"},
            {"account_name": "me", "skip_signature": True},
        ),
        *(
            (
                "az",
                {"AZURE_STORAGE_ACCOUNT_NAME": "me", name: "k"},
                {"AZURE_STORAGE_ACCESS_KEY": "k"},
                {"account_name": "me", "account_key": "k"},
            )
            for name in ("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
        ),
        (
            "az",
            {"AZURE_STORAGE_ACCOUNT": "me", "AZURE_STORAGE_SAS_TOKEN": "?sig=x"},
            {"AZURE_STORAGE_SAS_TOKEN": "sig=x"},
            {"sas_key": "sig=x"},
        ),
        (
            "az",
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=me;AccountKey=a==;BlobEndpoint=http://h:1/me/"},
            {"AZURE_STORAGE_ACCESS_KEY": "a==", "CPL_AZURE_ENDPOINT": "http://h:1/me"},
            {"account_name": "me", "account_key": "a==", "endpoint": "http://h:1/me"},
        ),
    ],
)
def test_keys_of_other_clouds_are_told_to_both_libraries(
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    environment: dict[str, str],
    gdal: dict[str, str],
    obstore: dict[str, object],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    location = parse_location(f"{scheme}://bucket/deep/a.tif")
    assert (location.host, location.key) == ("bucket", "deep/a.tif")
    options = Access().gdal_options(location), Access().obstore_options(scheme=scheme)
    assert options[0].items() >= gdal.items()
    assert all(options[1][key] == value for key, value in obstore.items())
    signed = "skip_signature" not in obstore
    assert signed == ("skip_signature" not in options[1]) == (not any("NO_SIGN" in key for key in options[0]))
    assert Bucket("bucket", Access(), scheme).where("k") == f"{scheme}://bucket/k"


@pytest.mark.usefixtures("no_keys")
def test_one_endpoint_stands_for_any_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "me")
    here = Access(endpoint="http://127.0.0.1:9000").resolved()
    gs, az = (here.gdal_options(parse_location(f"{scheme}://bucket/a.tif")) for scheme in ("gs", "az"))
    assert gs["CPL_GS_ENDPOINT"] == "http://127.0.0.1:9000/"
    assert az["CPL_AZURE_ENDPOINT"] == here.obstore_options(scheme="az")["endpoint"] == "http://127.0.0.1:9000/me"
    own = Access(endpoint="https://me.blob.core.chinacloudapi.cn").resolved()
    assert own.obstore_options(scheme="az")["endpoint"] == "https://me.blob.core.chinacloudapi.cn"
    assert not own.obstore_options(scheme="az")["client_options"]["allow_http"]
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT")
    with pytest.raises(UsageError, match="CF-057"):
        here.gdal_options(parse_location("az://container/a.tif"))
    (tmp_path / "application_default_credentials.json").write_text("{}")
    assert "GS_NO_SIGN_REQUEST" not in here.gdal_options(parse_location("gs://bucket/a.tif"))
