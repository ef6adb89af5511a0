"""Scenes behind a web server or in a bucket: who they are, some of their bytes, and what GDAL has to be told.

GDAL reads the pixels. It neither tells what a server said nor lets anyone decide where a redirection may lead, so both
are found out here, by requests of our own, before it opens a scene and after it fails.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.bucket import Bucket, ConflictError, NoObjectError, ObjectFacts, failed, no_access
from pipeline.errors import InputError, PipelineError
from pipeline.location import BUCKETS, Location, parse_location
from pipeline.scene.datasets import open_dataset

if TYPE_CHECKING:
    from pipeline.access import Access

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_DENIED = frozenset({401, 403, 407})
_MISSING = frozenset({404, 410})
_MOST_REDIRECTIONS = 5
_PARTIAL = 206
_BLOCK_BYTES = 128 * 1024
_BLOCKS_KEPT = 64
_METADATA = frozenset({"metadata.google.internal", "metadata", "instance-data"})
_METADATA_ADDRESSES = frozenset({"100.100.100.200", "192.0.0.192", "fd00:ec2::254"})


class _PassingError(Exception):
    """A trouble that may be over in a moment."""


class _Answer(NamedTuple):
    body: bytes
    facts: ObjectFacts
    location: Location
    """Where redirections led."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that is not on a local disk, as a recipe. Its text form holds no secret."""

    location: Location
    access: Access

    def __str__(self) -> str:
        return str(self.location)

    def facts(self) -> ObjectFacts:
        """Size, time and ETag.

        Raises:
            InputError: IN-040 not there, IN-041 an address that is refused, IN-042 a server that cannot send parts.
            InfrastructureError: ST-010 to ST-013, what stopped us after retries.
        """
        return self._ask(0, 1).facts

    def read(self, start: int, stop: int, *, version: ObjectFacts | None = None) -> bytes:
        """Bytes `start` to `stop` (excluded); fewer at the end of the file.

        Args:
            start: First byte.
            stop: The one after the last.
            version: Facts of the version that they must be of; any if None.

        Raises:
            InputError: As `facts`; IN-015, it is another version.
            InfrastructureError: As `facts`.
        """
        answer = self._ask(start, stop)
        if version is not None and not _is_same(answer.facts, version):
            raise self._changed()
        return answer.body

    def ends(self, count: int) -> tuple[bytes, bytes, ObjectFacts]:
        """First and last `count` bytes, and the facts. Raises as `facts`."""
        head = self._ask(0, count)
        if head.facts.size <= count:
            return head.body, head.body, head.facts
        return head.body, self.read(max(head.facts.size - count, 0), head.facts.size), head.facts

    def open(self, driver: str, *, version: str) -> Any:
        """A dataset of GDAL, opened where redirections lead: each hop was looked at. Raises as `facts`, or GDAL_ERRORS.

        Args:
            driver: The only one allowed.
            version: ETag of the version that is meant.
        """
        location = self._ask(0, 1).location
        bucket = f"/vsi{location.scheme}/{location.host}/{location.key}"
        kind = bucket if location.scheme in BUCKETS else f"/vsicurl/{location.url}"
        identity = f"{self.access.endpoint_of(location.scheme)} {kind}"
        anew = _versions.get(identity, version) != version
        _versions[identity] = version
        return open_dataset(kind, driver, self.access.gdal_options(location, anew=anew))

    def distrust(self) -> None:
        """After a failure: what GDAL has read of any file, and keeps, may be wrong."""
        _versions.update(dict.fromkeys(_versions, "?"))

    def hurried(self) -> RemoteFile:
        """The same file, asked once and not for long: what is wrong, after waiting long enough."""
        short = self.access.stall_s / 4
        access = replace(self.access, retries=0, stall_s=short, connect_s=min(short, self.access.connect_s))
        return replace(self, access=access)

    def gdal_options(self) -> dict[str, str]:
        """Settings under which an open dataset is read."""
        return self.access.gdal_options(self.location)

    def _ask(self, start: int, stop: int) -> _Answer:
        try:
            if self.location.scheme in BUCKETS:
                return self._ask_bucket(start, stop)
            return _with_retries(self, start, stop)
        except NoObjectError:
            raise InputError(
                f"there is no {self}, says the server",
                code="IN-040",
                title="Scene not found",
                where=str(self),
                fix="check bucket, key and --endpoint" if self.location.scheme in BUCKETS else "check the address",
            ) from None
        except ConflictError:
            raise self._changed() from None

    def _changed(self) -> InputError:
        return InputError(
            f"{self} changed while it was read",
            code="IN-015",
            title="Scene changed",
            where=str(self),
            fix="leave files alone while they are read, and run again",
        )

    def _ask_bucket(self, start: int, stop: int) -> _Answer:
        bucket = Bucket(self.location.host, self.access, self.location.scheme)
        key = self.location.key
        if start > 0:  # nobody asks beyond the end of a file whose size is known
            return _Answer(*bucket.get_part(key, start, stop), self.location)
        facts = bucket.head(key)
        stop = min(stop, facts.size)
        body = bucket.get_range(key, start, stop, etag=facts.etag) if stop > start else b""
        return _Answer(body, facts, self.location)


def _is_same(one: ObjectFacts, other: ObjectFacts) -> bool:
    """By ETag; where a server tells none, by size and time."""
    return one.etag == other.etag if one.etag or other.etag else one == other


_versions: dict[str, str] = {}
"""What this process has opened, and which version GDAL may have kept parts of."""


class RangeReader(io.RawIOBase):
    """A remote file to seek and read in; wrap it in `io.BufferedReader`."""

    def __init__(self, file: RemoteFile, size: int) -> None:
        super().__init__()
        self._file, self._size, self._at = file, size, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Choose where the next read begins."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` with the next bytes; returns how many, 0 at the end."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        stop = min(self._at + len(view), self._size)
        if stop <= self._at:
            return 0
        data = self._file.read(self._at, stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class BlockReader(RangeReader):
    """As `RangeReader`, for those who ask for few bytes here and there: they come in blocks, some of which are kept.

    Args:
        file: Which.
        version: Facts of the version that is meant.
    """

    def __init__(self, file: RemoteFile, version: ObjectFacts) -> None:
        super().__init__(file, version.size)
        self._version = version
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` with the next bytes; returns how many, 0 at the end. Raises as `RemoteFile.read`."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        start, stop = self._at, min(self._at + len(view), self._size)
        if stop <= start:
            return 0
        if stop - start > _BLOCK_BYTES:
            data = self._file.read(start, stop, version=self._version)
        else:
            first = start // _BLOCK_BYTES
            both = b"".join(self._block(k) for k in range(first, (stop - 1) // _BLOCK_BYTES + 1))
            data = both[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * _BLOCK_BYTES
            stop = min(start + _BLOCK_BYTES, self._size)
            self._blocks[number] = self._file.read(start, stop, version=self._version)
            while len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]


def _with_retries(file: RemoteFile, start: int, stop: int) -> _Answer:
    """One range of a web file. Passing troubles are tried again; a time-out is not, it has taken long enough."""
    access, delay = file.access, 0.25
    for left in range(access.retries, -1, -1):
        try:
            return _follow(file, start, stop)
        except _PassingError as error:
            reason = str(error)
        except PipelineError:
            raise
        except TimeoutError as error:
            reason = str(error) if "no connection" in str(error) else f"it stood still for {access.stall_s:g} s"
            break
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            reason = f"no connection: {error or type(error).__name__}"
        if left:
            time.sleep(delay)
            delay = min(2 * delay, access.stall_s)
    raise failed(str(file), reason)


def _follow(file: RemoteFile, start: int, stop: int) -> _Answer:
    """Ask, and go where redirections lead, as far as addresses allow it."""
    location, inside = file.location, False
    for hop in range(_MOST_REDIRECTIONS + 1):
        inside = _check_address(location, file.access, redirected_from_outside=hop > 0 and not inside)
        answer = _request(location, file.access, start, stop)
        if isinstance(answer, _Answer):
            return answer
        try:
            location = parse_location(urljoin(location.url, answer), schemes=("https", "http"))
        except ValueError as error:
            raise _refused(str(file), "it redirects to something that is no web address") from error
    raise _refused(str(file), f"it redirects more than {_MOST_REDIRECTIONS} times")


def _check_address(location: Location, access: Access, *, redirected_from_outside: bool) -> bool:
    """Refuse addresses that no scene lies on; returns whether it leads into a private network.

    Metadata services of clouds answer on link-local addresses, with keys. The name is looked up once more for the
    request itself: a name server that changes its mind in between could get past this, for a scene's pixels only.
    """
    host = (urlsplit(location.url).hostname or "").rstrip(".")
    proxied = location.scheme in getproxies() and not proxy_bypass(host)
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        if proxied and host not in _METADATA:
            return False  # only the proxy knows
        reason = f"no connection: the name {host} leads nowhere ({error})"
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            raise _PassingError(reason) from error
        raise failed(str(location), reason) from error
    inside = False
    for text in found:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_loopback:
            if not access.allow_loopback:
                raise _refused(str(location), f"{host} is this machine", fix="--allow-loopback permits that")
        elif address.is_link_local or address.is_multicast or address.is_unspecified or _is_metadata(host, address):
            raise _refused(str(location), f"{host} ({address}) is an address for a machine's own services")
        inside = inside or address.is_private
    if inside and redirected_from_outside:
        raise _refused(str(location), f"a public server redirects to {host}, which is in a private network")
    return inside


def _is_metadata(host: str, address: object) -> bool:
    return host.lower() in _METADATA or str(address) in _METADATA_ADDRESSES


def _refused(where: str, why: str, *, fix: str = "give the address of the file itself") -> InputError:
    return InputError(
        f"{where} is not followed: {why}", code="IN-041", title="Address is refused", where=where, fix=fix
    )


def _request(location: Location, access: Access, start: int, stop: int) -> _Answer | str:
    """One request: its answer, or where it redirects to."""
    connection = _connect(location, access)
    try:
        target = location.url if location.scheme == "http" and _proxy_of(location) else location.target
        connection.request("GET", target, headers={"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        status = response.status
        if 300 <= status < 400 and response.headers.get("Location"):  # noqa: PLR2004 - HTTP's redirections
            return str(response.headers["Location"])
        if status in _MISSING:
            raise NoObjectError(str(location))
        if status in _DENIED:
            raise no_access(str(location), f"the server refuses access with status {status}")
        if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            facts = _facts(response, size=int(response.headers.get("Content-Range", "*/0").rpartition("/")[2] or 0))
            return _Answer(b"", facts, location)
        if status != _PARTIAL:
            if status in _PASSING:
                msg = f"the server answers with status {status}"
                raise _PassingError(msg)
            raise _no_parts(location, f"it answers with status {status}")
        size = _size_if_as_asked(response, location, start, stop)
        return _Answer(_body(response, min(stop, size) - start, access), _facts(response, size=size), location)
    finally:
        connection.close()


def _size_if_as_asked(response: http.client.HTTPResponse, location: Location, start: int, stop: int) -> int:
    """Size of the whole file, if the part is the one that was asked for; GDAL does not look."""
    told = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", told)
    if match is None:
        raise _no_parts(location, f"it tells no size ({told or 'no Content-Range'})")
    first, last, size = (int(n) for n in match.groups())
    if (first, last) != (start, min(stop, size) - 1):
        raise failed(str(location), f"asked for bytes {start}-{stop - 1}, the server sent {told[6:]}")
    return size


def _body(response: http.client.HTTPResponse, count: int, access: Access) -> bytes:
    """`count` bytes, few enough that a server which takes longer than it may stand still is as good as dead."""
    deadline = time.monotonic() + access.stall_s
    parts, left = [], count
    while left > 0:
        part = response.read1(left)
        if not part:
            msg = f"the body was cut short: {count - left} of {count} bytes came"
            raise _PassingError(msg)
        parts.append(part)
        left -= len(part)
        if left and time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _no_parts(location: Location, why: str) -> InputError:
    return InputError(
        f"the server of {location} sends no parts of files: {why}; expected status 206 and a Content-Range",
        code="IN-042",
        title="Server cannot send parts",
        where=str(location),
        fix="download the file first",
    )


def _connect(location: Location, access: Access) -> http.client.HTTPConnection:
    proxy = _proxy_of(location)
    parts = urlsplit(proxy or location.url)
    secure = location.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    port = parts.port or (443 if urlsplit(location.url).scheme == "https" and not proxy else 80)
    connection = kind(parts.hostname or "", port, timeout=access.connect_s)
    if proxy and secure:
        target = urlsplit(location.url)
        connection.set_tunnel(target.hostname or "", target.port or 443)
    try:
        connection.connect()
    except TimeoutError:
        msg = f"no connection within {access.connect_s:g} s"
        raise TimeoutError(msg) from None
    connection.sock.settimeout(access.stall_s)
    return connection


def _proxy_of(location: Location) -> str:
    """The proxy that the environment names, as GDAL would take it; empty without."""
    host = urlsplit(location.url).hostname or ""
    return "" if proxy_bypass(host) else getproxies().get(location.scheme, "")


def _facts(response: http.client.HTTPResponse, *, size: int) -> ObjectFacts:
    changed = response.headers.get("Last-Modified", "")
    try:
        moment = int(parsedate_to_datetime(changed).timestamp() * 1e9)
    except (ValueError, TypeError):
        moment = 0
    return ObjectFacts(size, moment, response.headers.get("ETag", ""))


def remote_file(value: object, access: Access) -> RemoteFile:
    """The file at an address; settings that the environment decides are resolved here, on the client.

    Raises:
        UsageError: CF-050, CF-051, CF-054.
    """
    return RemoteFile(parse_location(value), access.resolved())  # type: ignore[arg-type]
