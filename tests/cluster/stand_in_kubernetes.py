"""Stands in for Kubernetes and the Dask operator: an API that keeps resources and runs a DaskCluster as processes.

Real are the requests, the commands of the pods with their keys and variables, and all of Dask. Not real are pods and
their network: what a pod would mount is laid in a folder, and the service's name is written into a hosts file.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import yaml

from tests.cluster.running import environment

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = "127.77.0.1"
MOUNT = "/etc/scenemask-tls"


class Kubernetes:
    """A context in which `kubeconfig` leads to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.resources: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.health: int | None = None
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for name in list(self._processes):
            self._end(name)

    @property
    def kubeconfig(self) -> str:
        path = self.folder / "kubeconfig"
        context = {"cluster": "c", "user": "u", "namespace": "maps"}
        path.write_text(
            yaml.dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "x",
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": context}],
                }
            )
        )
        return str(path)

    def create(self, path: str, resource: dict[str, Any]) -> None:
        name = resource["metadata"]["name"]
        self.resources[f"{path}/{name}"] = resource
        if resource["kind"] == "Secret":
            keys = self.folder / name
            keys.mkdir(mode=0o700)
            for file, text in resource["data"].items():
                (keys / file).write_bytes(base64.b64decode(text))
        if resource["kind"] == "DaskCluster":
            self._start(name, resource["spec"])

    def delete(self, path: str) -> None:
        self._end(path.rpartition("/")[2])
        self.resources.pop(path, None)

    def _start(self, name: str, spec: dict[str, Any]) -> None:
        with self.hosts.open("a") as file:
            file.write(f"{ADDRESS} {name}-scheduler.maps\n")
        self._processes[name] = [self._run(name, "scheduler", spec["scheduler"]["spec"], "--host", ADDRESS)]
        self.health = _await_health("http://127.0.0.1:8787/health")
        for number in range(spec["worker"]["replicas"]):
            self._processes[name].append(self._run(name, f"worker-{number}", spec["worker"]["spec"]))

    def _run(self, name: str, part: str, pod: dict[str, Any], *more: str) -> subprocess.Popen[bytes]:
        container = pod["containers"][0]
        replaced = {MOUNT: str(self.folder / f"{name}-tls"), f"{name}-scheduler": ADDRESS, "$(DASK_WORKER_NAME)": part}
        command = list(container["command"])
        for old, new in replaced.items():
            command = [word.replace(old, new) for word in command]
        assert command[0] == "python"
        variables = {one["name"]: one["value"] for one in container["env"]}
        with (self.folder / f"{part}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *command[1:], *more], stdout=log, stderr=log, env=environment(**variables)
            )

    def _end(self, name: str) -> None:
        for process in self._processes.pop(name, []):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()
            process.wait()


def _await_health(url: str) -> int:
    """What the operator's probe asks for; `distributed` says nothing in its log but errors."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url) as told:
                return int(told.status)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _handler(kubernetes: Kubernetes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, document: object, status: int = 200) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _path(self) -> str:
            kubernetes.requests.append(f"{self.command} {self.path}")
            return self.path.partition("?")[0].rstrip("/")

        def do_GET(self) -> None:
            path = self._path()
            if path == "/version":
                self._answer({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
                return
            found = kubernetes.resources.get(path)
            self._answer(found or {"kind": "Status", "code": 404, "message": "not found"}, 200 if found else 404)

        def do_POST(self) -> None:
            path = self._path()
            resource = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(resource, 201)
            kubernetes.create(path, resource)

        def do_DELETE(self) -> None:
            path = self._path()
            kubernetes.delete(path)
            self._answer({"kind": "Status", "status": "Success"})

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler
