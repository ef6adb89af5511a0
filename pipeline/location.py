"""Addresses of what is not on a local disk: `s3://bucket/key`, `gs://`, `az://`, `https://host/path`. No network."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlsplit

from pipeline.errors import UsageError

BUCKETS = ("s3", "gs", "az")
_SCHEMES = (*BUCKETS, "https", "http")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


@dataclass(frozen=True, slots=True)
class Location:
    """An object in a bucket, or a file behind a web server. Its text form holds no secret."""

    scheme: str
    """`s3`, `gs`, `az`, `https` or `http`."""
    host: str
    """Bucket (with Azure: container), or host with its port."""
    key: str
    """What follows, without a slash at its start."""
    query: str = field(default="", repr=False)
    """Query string of a web address, where signatures stand; never shown or written."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}/{self.key}"

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Ending of the name with its dot, in lower case; empty without."""
        return os.path.splitext(self.name)[1].lower()  # noqa: PTH122 - no path of this machine

    @property
    def parent(self) -> Location:
        """What it lies in; queries belong to one file and stay with it."""
        return replace(self, key=self.key.rstrip("/").rpartition("/")[0], query="")

    @property
    def target(self) -> str:
        """Path and query as they are asked for, secrets included."""
        path = "/" + quote(self.key, safe="/%:@!$&'()*+,;=~-._")
        return f"{path}?{self.query}" if self.query else path

    @property
    def url(self) -> str:
        """The whole web address, secrets included."""
        return f"{self.scheme}://{self.host}{self.target}"

    def __truediv__(self, name: str) -> Location:
        return self.child(name)

    def child(self, name: str) -> Location:
        """What is called `name` under this prefix."""
        return replace(self, key=f"{self.key.rstrip('/')}/{name}".lstrip("/"))


def is_remote(value: object) -> bool:
    """Whether text or a path is meant as an address; `Path("s3://b/k")`, which loses a slash, is one too."""
    if isinstance(value, Location):
        return True
    if not isinstance(value, str | os.PathLike):
        return False
    match = _ADDRESS.match(os.fspath(value)) if not isinstance(os.fspath(value), bytes) else None
    return match is not None and (bool(match[2]) or match[1].lower() in _SCHEMES)


def parse_location(value: str | os.PathLike[str] | Location, *, schemes: tuple[str, ...] = _SCHEMES) -> Location:
    """The location that text means.

    Args:
        value: For which `is_remote` holds.
        schemes: Those that can be used here.

    Raises:
        UsageError: CF-050 for an address that cannot be used here, CF-051 for one with a password in it.
    """
    if isinstance(value, Location):
        return value
    text = os.fspath(value)
    match = _ADDRESS.match(text)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in schemes:
        raise _unusable(text, f"it does not begin with {' or '.join(f'{s}://' for s in schemes)}")
    if any(ord(c) < ord(" ") for c in text):
        raise _unusable(text, "it holds control characters")
    if scheme in BUCKETS:
        bucket, _, key = match[3].partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise _unusable(text, "no bucket of that name can exist")
        return Location(scheme, bucket, key)
    try:
        parts = urlsplit(f"{scheme}://{match[3]}")
        parts.port  # noqa: B018 - raises for what is no number
    except ValueError as error:
        raise _unusable(text, "host or port make no sense") from error
    if "@" in parts.netloc:
        raise UsageError(
            "the address holds a user name or password, which would end up in logs",
            code="CF-051",
            title="Password in an address",
            where=f"{scheme}://***@{parts.netloc.rpartition('@')[2]}{parts.path}",
            fix="leave it out; use a signed address, or an s3:// address with AWS_PROFILE",
        )
    if not parts.hostname:
        raise _unusable(text, "it names no host")
    return Location(scheme, parts.netloc, parts.path.lstrip("/"), parts.query)


def _unusable(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text} cannot be used as an address: {why}",
        code="CF-050",
        title="Address cannot be used",
        where=text,
        fix="scenes may lie on s3://bucket/key, gs://, az://, https:// or http://, results on s3://bucket/prefix; "
        "for other places, copy the file first",
    )
