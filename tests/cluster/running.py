"""Schedulers and workers as processes, certificates, and a scene whose result is known: what cluster tests share."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import pipeline as sm
from tests.scenes import save_unet, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Known:
    """A scene, a model, options that cut it into small tiles, and the mask that this machine makes of it."""

    scene: Path
    model: Path
    sha256: str
    options: Mapping[str, object]


def make_known(folder: Path, *, side: int = 200) -> Known:
    scene = write_scene(folder / "scene.tif", smooth_values(2, (side, side)), names=("b0", "b1"))
    save_unet(folder / "model", depth=2)
    options = {"patch": 64, "tile": 1, "vectors": "none"}
    here = sm.segment(scene, folder / "model", folder / "here", **options)
    return Known(scene, folder / "model", sha256(here.mask_path), options)


def environment(**variables: str) -> dict[str, str]:
    """For child processes, which import this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", **variables}


def can_mount() -> bool:
    """Whether a process may see other disks than this one."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(command: Sequence[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env=environment(**variables))
    try:
        yield child
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=10)
        child.kill()
        child.wait()


def dask(part: str, *arguments: str) -> list[str]:
    """Command of a `dask scheduler` or `dask worker` without dashboards."""
    quiet = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    return [sys.executable, "-m", f"distributed.cli.dask_{part}", *quiet, *arguments]


def await_lines(log: Path, text: str, count: int = 1, *, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if log.read_text(errors="replace").count(text) >= count:
            return
        time.sleep(0.1)
    pytest.fail(f"no {text!r} in:\n{log.read_text(errors='replace')[-3000:]}")


OTHER_NUMPY = """
import importlib.util, numpy
numpy.__version__ = numpy.__version__ + "9"
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "openvino" else found(name, *more)
"""
SLOW_TILES = """
import sys, threading, time

def wait():
    while not hasattr(sys.modules.get("pipeline.run.tile_task"), "_compute_tile"):
        time.sleep(0.005)
    task = sys.modules["pipeline.run.tile_task"]
    fast = task._compute_tile
    task._compute_tile = lambda *given: time.sleep(0.1) or fast(*given)

threading.Thread(target=wait, daemon=True).start()
"""
"""Dask gives a worker that joins no task while those that hold the model take no time for theirs."""
NO_SCENEMASK = "import sys; sys.modules['pipeline'] = None\n"


@contextlib.contextmanager
def odd_worker(
    scheduler: tuple[str, Path], folder: Path, customize: str = "", *before: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose Python runs `customize` when it starts; the scheduler has it for the block alone."""
    address, log = scheduler
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(customize)
    command = [*before, *dask("worker", address, "--nthreads", "2", "--no-nanny", "--host", "127.0.0.1")]
    come, gone = (log.read_text().count(text) for text in ("Register worker", "Remove worker"))
    path = f"{site}{os.pathsep}{environment()['PYTHONPATH']}"
    with process(command, folder / "worker.log", PYTHONPATH=path) as child:
        await_lines(log, "Register worker", come + 1)
        yield child
    await_lines(log, "Remove worker", gone + 1)


def with_another_disk(path: Path) -> list[str]:
    """What a command is begun with so that it sees another disk under a path, as a host that forgot to mount it."""
    return ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none "{path}" && exec "$@"', "sh"]


def make_certificates(folder: Path) -> Path:
    """An authority and a certificate of it, as an administrator would make them: ca.pem, cert.pem, key.pem."""
    folder.mkdir()
    authority, mine = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    today = dt.datetime.now(tz=dt.UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - dt.timedelta(days=1))
            .not_valid_after(today + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(authority, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    (folder / "ca.pem").write_bytes(certificate("tests", authority, ca=True))
    (folder / "cert.pem").write_bytes(certificate("host", mine, ca=False))
    (folder / "key.pem").write_bytes(
        mine.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


def tls(folder: Path) -> list[str]:
    """Options of `dask scheduler` and `dask worker`."""
    files = {"ca-file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
    return [
        "--protocol",
        "tls",
        *(part for name, file in files.items() for part in (f"--tls-{name}", str(folder / file))),
    ]


def address_file(path: Path, address: str, certificates: Path | None = None, **more: object) -> str:
    """A file for `--cluster`."""
    lines = ["kind: address", f"address: {address}", *(f"{name}: {value}" for name, value in more.items())]
    if certificates is not None:
        lines += [f"{name}: {certificates / name}.pem" for name in ("ca", "cert", "key")]
    path.write_text("\n".join(lines))
    return str(path)
