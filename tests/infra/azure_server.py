"""Azure Blob Storage on loopback, as far as reading goes: files of `folder/ACCOUNT/CONTAINER`, in parts, and listed."""

from __future__ import annotations

import hashlib
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from tests.infra.range_server import RangeHandler, RangeServer

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNT = "account"


class AzureHandler(RangeHandler):
    """Answers `?comp=list`, and remembers how requests are signed."""

    server: AzureServer

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        self.server.signed.add(self.headers.get("Authorization", "").partition(":")[0])
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if query.get("comp") != ["list"]:
            super().do_GET()
            return
        self.server.requests.append((self.command, self.path, ""))
        container = self.server.folder / parts.path.strip("/")
        prefix = query.get("prefix", [""])[0]
        files = sorted(str(path.relative_to(container)) for path in container.rglob("*") if path.is_file())
        files = [name for name in files if name.startswith(prefix)]
        inside = [name.removeprefix(prefix).partition("/") for name in files]
        folders = sorted({first for first, slash, _ in inside if slash}) if query.get("delimiter") == ["/"] else []
        files = [name for name in files if name.removeprefix(prefix).partition("/")[0] not in folders]
        blobs = "".join(_described(container, name) for name in files)
        blobs += "".join(f"<BlobPrefix><Name>{escape(prefix + name)}/</Name></BlobPrefix>" for name in folders)
        body = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
        self.reply(200, body.encode(), {"Content-Type": "application/xml"})


class AzureServer(RangeServer):
    """`az://CONTAINER/...` of one account: `folder/account/CONTAINER`."""

    handler = AzureHandler

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.signed: set[str] = set()
        """Beginnings of the header `Authorization`, without signatures."""

    @property
    def endpoint(self) -> str:
        return self.url("").rstrip("/")


def _described(container: Path, name: str) -> str:
    path = container / name
    facts = {
        "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
        "Etag": f'"{hashlib.md5(path.read_bytes()).hexdigest()}"',
        "Content-Length": path.stat().st_size,
        "Content-Type": "application/octet-stream",
    }
    properties = "".join(f"<{key}>{value}</{key}>" for key, value in facts.items())
    return f"<Blob><Name>{escape(name)}</Name><Properties>{properties}</Properties></Blob>"
