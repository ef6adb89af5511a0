"""An HTTP server on loopback that sends parts of files, and misbehaves on request. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

if TYPE_CHECKING:
    from pathlib import Path

HANG_S = 60.0
_STATUS = {"403", "404", "429", "500", "503"}


class RangeServer(ThreadingHTTPServer):
    """Serves the files of a folder by ranges; `with RangeServer(folder) as server: server.url("scene.tif")`.

    `fault` is what happens to a request: an HTTP status, "short" (the connection ends in the middle of the body),
    "wrong-range", "whole" (200 and all of it), "hang" (no answer), "drip" (a byte a second), "redirect" (to `target`).
    It begins after `after` good answers and happens `times` times.
    """

    daemon_threads = True
    handler: type[RangeHandler]

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.folder = folder
        self.fault = ""
        self.after, self.times = 0, 10**9
        self.target = ""
        self.etags = True
        """Whether it tells ETags; times are told in any case."""
        self.requests: list[tuple[str, str, str]] = []
        """Method, path with query, range."""
        self.guard = threading.Lock()
        self.stop = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that lose patience are part of the game."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def misbehave(self, fault: str, *, after: int = 0, times: int = 10**9, target: str = "") -> None:
        with self.guard:
            self.fault, self.after, self.times, self.target = fault, after, times, target
            self.requests.clear()

    def next_fault(self, method: str, path: str, ranges: str) -> str:
        with self.guard:
            self.requests.append((method, path, ranges))
            if not self.fault:
                return ""
            if self.after > 0:
                self.after -= 1
                return ""
            self.times -= 1
            return self.fault if self.times >= 0 else ""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()


class RangeHandler(BaseHTTPRequestHandler):
    """Sends files, whole or in parts."""

    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        fault = self.server.next_fault(self.command, self.path, self.headers.get("Range", ""))
        path = self.server.folder / unquote(self.path.partition("?")[0]).lstrip("/")
        if fault == "hang":
            self.server.stop.wait(HANG_S)
            self.close_connection = True
        elif fault == "redirect":
            self.reply(302, b"", {"Location": self.server.target} if self.server.target else {})
        elif fault in _STATUS or not path.is_file():
            self.reply(int(fault if fault in _STATUS else 404), b"no" if with_body else b"")
        else:
            with contextlib.suppress(ConnectionError):
                self._send_file(path, fault, with_body=with_body)

    def _send_file(self, path: Path, fault: str, *, with_body: bool) -> None:
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {
            "ETag": f'"{hashlib.md5(data).hexdigest()}"',
            "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if not self.server.etags:
            del headers["ETag"]
        if wanted is None or fault == "whole":
            self.reply(200, data, headers, fault=fault, with_body=with_body)
            return
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        if start >= len(data):
            self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        shift = 7 if fault == "wrong-range" else 0
        headers["Content-Range"] = f"bytes {start + shift}-{stop - 1 + shift}/{len(data)}"
        self.reply(206, data[start:stop], headers, fault=fault, with_body=with_body)

    def reply(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        fault: str = "",
        with_body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        if fault == "short":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "drip":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.stop.wait(1.0):
                    break
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


RangeServer.handler = RangeHandler


if __name__ == "__main__":
    import sys
    from pathlib import Path as _Path

    with RangeServer(_Path(sys.argv[1])) as running:
        print(running.url(""), flush=True)  # noqa: T201
        time.sleep(3600)
