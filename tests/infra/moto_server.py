"""An S3 service on loopback: moto's own process, with a bucket in it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import boto3

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "scenes"
SECRET = "canary-of-the-secret-key"
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARYCANA",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def moto_server() -> Iterator[str]:
    """Its address, once it answers; the process ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **KEYS},
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_until(lambda: urlopen(f"{endpoint}/moto-api/data.json", timeout=5).status == 200)
        urlopen(Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=30).close()
        yield endpoint
    finally:
        process.terminate()
        process.wait()


def _wait_until(ready: object) -> None:
    assert callable(ready)
    for _ in range(300):
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.1)
    raise TimeoutError


def objects(endpoint: str, prefix: str) -> dict[str, bytes]:
    """Everything under a prefix."""
    client = boto3.client("s3", endpoint_url=endpoint)
    start = prefix.removeprefix(f"s3://{BUCKET}/") + "/"
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=start).get("Contents", [])
    return {o["Key"].removeprefix(start): client.get_object(Bucket=BUCKET, Key=o["Key"])["Body"].read() for o in found}
