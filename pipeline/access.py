"""How things that are not on a local disk are reached: one setting each, spelled for GDAL, obstore and botocore here.

Keys are never part of it. Every process finds them itself (`keys.py`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline import keys
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.location import Location

_RETRY_DELAY_S = 0.5
_SLOWEST = 1000
"""Bytes a second below which a transfer counts as standing still."""
_SPELLED = {"s3": keys.amazon, "gs": keys.google, "az": keys.azure}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where object storage is and how patient to be with servers. Travels to workers; holds no secret."""

    endpoint: str | None = None
    """Address of a service that takes the place of S3, Google's or Azure's, such as `http://127.0.0.1:9000`."""
    amazons_endpoint: str | None = None
    """The same of S3 alone, where the environment names it."""
    allow_loopback: bool = False
    """Whether web addresses may lead to this machine."""
    retries: int = 5
    """After answers that tell of a passing trouble: 429, 500, 502, 503, 504, a body cut short, a lost connection."""
    connect_s: float = 10.0
    """Seconds until a connection must stand."""
    stall_s: float = 30.0
    """Seconds that a transfer may stand still; nothing waits for more than twice as long."""

    def resolved(self) -> Access:
        """With the endpoint that the environment names, where none was given; on the client, before work begins.

        Raises:
            UsageError: CF-054, it is no address of a web server.
        """
        if self.endpoint or self.amazons_endpoint:
            return replace(self, endpoint=_checked(self.endpoint, "--endpoint"))
        named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return replace(self, amazons_endpoint=_checked(named, "AWS_ENDPOINT_URL"))

    def endpoint_of(self, scheme: str) -> str | None:
        """Address of the service that `s3`, `gs` or `az` means; None: the cloud itself."""
        return self.endpoint or (self.amazons_endpoint if scheme == "s3" else None)

    def gdal_options(self, location: Location, *, anew: bool = False) -> dict[str, str]:
        """GDAL's settings for one dataset; nothing beside it is looked for.

        Args:
            location: Where it is.
            anew: Forget what was read of it before, failures included: GDAL keeps both for the whole process.
        """
        options = {
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
            "GDAL_HTTP_MAX_RETRY": str(self.retries),
            "GDAL_HTTP_RETRY_DELAY": str(_RETRY_DELAY_S),
            "GDAL_HTTP_CONNECTTIMEOUT": str(math.ceil(self.connect_s)),
            # Opening takes up to three requests, which must not add up to more than twice the time.
            "GDAL_HTTP_LOW_SPEED_TIME": str(math.ceil(self.stall_s / 2)),
            "GDAL_HTTP_LOW_SPEED_LIMIT": str(_SLOWEST),
            # A signature that holds for GET need not hold for HEAD.
            "CPL_VSIL_CURL_USE_HEAD": "NO" if location.query else "YES",
            "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/" if anew else "",
            "CPL_CURL_VERBOSE": "NO",  # it prints keys
        }
        spelled = _SPELLED.get(location.scheme)
        return options if spelled is None else options | spelled(self.endpoint_of(location.scheme)).gdal

    def obstore_options(self, *, sending: bool = False, scheme: str = "s3") -> dict[str, Any]:
        """Keyword arguments of `obstore.store.S3Store` and its like, keys among them: never kept or shown.

        Args:
            sending: For parts of large files, which take their time on a slow line.
            scheme: `s3`, `gs` or `az`.
        """
        spelled = _SPELLED[scheme](self.endpoint_of(scheme)).obstore
        address = spelled.get("endpoint") or spelled.get("base_url") or ""
        return {
            "client_options": {
                "connect_timeout": timedelta(seconds=self.connect_s),
                "read_timeout": timedelta(seconds=self.stall_s),
                "timeout": timedelta(seconds=(20 if sending else 2) * self.stall_s),
                "allow_http": address.startswith("http:"),
            },
            "retry_config": {
                "max_retries": self.retries,
                "retry_timeout": timedelta(seconds=self.stall_s),
                "backoff": {"init_backoff": timedelta(seconds=_RETRY_DELAY_S / 2), "base": 2},
            },
            **spelled,
        }

    def botocore_options(self) -> dict[str, Any]:
        """Keyword arguments of `boto3.client("s3")`, for scripts that use it beside scenemask."""
        endpoint = self.endpoint_of("s3")
        return {} if endpoint is None else {"endpoint_url": endpoint}


def _checked(endpoint: str | None, where: str) -> str | None:
    """Without a slash at its end."""
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in {"http", "https"} or not parts.hostname or more:
        raise UsageError(
            f"the endpoint {endpoint} is no address of a service; expected http(s)://host:port and nothing else",
            code="CF-054",
            title="Endpoint is wrong",
            where=where,
            fix="write it as https://storage.example.org or http://127.0.0.1:9000",
        )
    return f"{parts.scheme}://{parts.netloc}"
