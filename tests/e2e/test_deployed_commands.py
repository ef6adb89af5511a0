"""The commands of docker/compose.yaml and of configs/kubernetes/dask, as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

import pipeline as sm
from tests.scenes import save_unet, sha256, smooth_values, write_scene
from tests.unit.deploy.deployment import ROOT, compose, pod_specs, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

Command = tuple[list[str], dict[str, str]]
"""Arguments and environment."""


def _of_compose() -> dict[str, Command]:
    return {
        name: (["scenemask", *service["command"]] if name == "job" else service["entrypoint"] + service["command"],
               service["environment"])
        for name, service in compose()["services"].items()
    }  # fmt: skip


def _of_kubernetes() -> dict[str, Command]:
    commands: dict[str, Command] = {}
    for container in (
        c for resource in written("dask/base") for spec in pod_specs(resource) for c in spec["containers"]
    ):
        environment = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        name = {"scenemask": "job"}.get(container["name"], container["name"])
        commands[name] = (container.get("command", ["scenemask"]) + container["args"], environment)
    return commands


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Here:
    """Rewrites a container's paths and hosts for this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self.health = _free_port(), {name: _free_port() for name in ("scheduler", "worker")}

    def __call__(self, text: str, name: str) -> str:
        text = re.sub(r"\b(scenemask-)?scheduler:8786", f"127.0.0.1:{self.port}", text)
        text = re.sub(r"^(127\.0\.0\.1)?:878[78]$", f"127.0.0.1:{self.health.get(name)}", text)
        text = {"8786": str(self.port), "0.0.0.0": "127.0.0.1", "$(DASK_WORKER_NAME)": "worker-1"}.get(text, text)
        return re.sub(r"^/(tmp|cache|tls|data)\b", lambda found: f"{self._folder}/{found[1]}", text)

    def start(self, name: str, command: Command) -> subprocess.Popen[bytes]:
        arguments = [self(text, name) for text in command[0] if text not in {"with-kernels", "--insecure-cluster"}]
        start = (
            "from pipeline.cli import main; main()"
            if arguments[0] == "scenemask"
            else "import dask.__main__ as m; m.main()"
        )
        environment = {key: self(value, name) for key, value in command[1].items()}
        return subprocess.Popen(
            [sys.executable, "-c", start, *arguments[1:]], env=os.environ | environment | {"PYTHONPATH": str(ROOT)}
        )


def _certificates(folder: Path) -> None:
    """As the comment of cluster.yaml makes them."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    text = (ROOT / "configs" / "kubernetes" / "dask" / "base" / "cluster.yaml").read_text()
    commands = re.findall(r"^#   (openssl .*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        subprocess.run(command.split(), check=True, cwd=folder, capture_output=True)


@contextlib.contextmanager
def _running(here: _Here, commands: dict[str, Command]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("scheduler", "worker"):
            process = here.start(name, commands[name])
            stack.callback(process.wait)
            stack.callback(process.terminate)
            _wait_until_healthy(here.health[name], process)
        yield


def _wait_until_healthy(port: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            if answer.read() == b"ok":
                return
        time.sleep(0.2)
    pytest.fail("not healthy after two minutes")


@pytest.mark.parametrize("commands", [_of_compose, _of_kubernetes], ids=["compose", "kubernetes"])
def test_a_cluster_of_these_commands_gives_the_mask_of_one_process(
    commands: Callable[[], dict[str, Command]], tmp_path: Path
) -> None:
    for name in ("tmp", "cache", "tls", "data"):
        (tmp_path / name).mkdir()
    scene = write_scene(tmp_path / "data" / "scene.tif", smooth_values(2, (150, 170)), names=("b0", "b1"))
    model = save_unet(tmp_path / "data" / "model", depth=2)
    alone = sm.segment(scene, model, tmp_path / "alone")
    if commands is _of_kubernetes:
        _certificates(tmp_path / "tls")
    here = _Here(tmp_path)
    with _running(here, commands()):
        job = here.start("job", commands()["job"])
        assert job.wait(timeout=300) == 0
    assert sha256(tmp_path / "data" / "out" / "mask.tif") == sha256(alone.mask_path)
