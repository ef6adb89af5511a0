"""How things that are not on a local disk are reached: one setting each, spelled for GDAL, obstore and botocore here.

Keys are never part of it. Every process finds them itself, where AWS's own tools look: environment, profile, role.
"""

from __future__ import annotations

import configparser
import math
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.location import Location

_RETRY_DELAY_S = 0.5
_SLOWEST = 1000
"""Bytes a second below which a transfer counts as standing still."""
_YES = frozenset({"1", "yes", "true", "on"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where an S3-compatible service is and how patient to be with servers. Travels to workers; holds no secret."""

    endpoint: str | None = None
    """Address of the service, such as `http://127.0.0.1:9000`; AWS itself when None."""
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
        endpoint = self.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if not endpoint:
            return self
        parts = urlsplit(endpoint)
        more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
        if parts.scheme not in {"http", "https"} or not parts.hostname or more:
            raise UsageError(
                f"the endpoint {endpoint} is no address of a service; expected http(s)://host:port and nothing else",
                code="CF-054",
                title="Endpoint is wrong",
                where="--endpoint" if self.endpoint else "AWS_ENDPOINT_URL",
                fix="write it as https://storage.example.org or http://127.0.0.1:9000",
            )
        return replace(self, endpoint=f"{parts.scheme}://{parts.netloc}")

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
        if location.scheme == "gs":
            return options | ({"GS_NO_SIGN_REQUEST": "YES"} if _lacks(_GOOGLE) else {})
        if location.scheme == "az":
            return options | ({"AZURE_NO_SIGN_REQUEST": "YES"} if _lacks(_AZURE) else {})
        if location.scheme != "s3":
            return options
        if self.endpoint is not None:
            parts = urlsplit(self.endpoint)
            options["AWS_S3_ENDPOINT"] = parts.netloc
            options["AWS_HTTPS"] = "YES" if parts.scheme == "https" else "NO"
            options["AWS_VIRTUAL_HOSTING"] = "FALSE"
        if is_anonymous():
            options["AWS_NO_SIGN_REQUEST"] = "YES"
        return options

    def obstore_options(self, *, sending: bool = False, scheme: str = "s3") -> dict[str, Any]:
        """Keyword arguments of `obstore.store.S3Store` and its like, keys of a profile among them: never kept or shown.

        Args:
            sending: For parts of large files, which take their time on a slow line.
            scheme: `s3`, `gs` or `az`.
        """
        options: dict[str, Any] = {
            "client_options": {
                "connect_timeout": timedelta(seconds=self.connect_s),
                "read_timeout": timedelta(seconds=self.stall_s),
                "timeout": timedelta(seconds=(20 if sending else 2) * self.stall_s),
                "allow_http": self.endpoint is not None and self.endpoint.startswith("http:"),
            },
            "retry_config": {
                "max_retries": self.retries,
                "retry_timeout": timedelta(seconds=self.stall_s),
                "backoff": {"init_backoff": timedelta(seconds=_RETRY_DELAY_S / 2), "base": 2},
            },
        }
        if scheme != "s3":
            account = os.environ.get("AZURE_STORAGE_ACCOUNT")  # obstore knows it as AZURE_STORAGE_ACCOUNT_NAME
            named = {"account_name": account} if scheme == "az" and account else {}
            lacking = _lacks(_GOOGLE if scheme == "gs" else _AZURE)
            return options | named | ({"skip_signature": True} if lacking else {})
        options |= _profile()
        if self.endpoint is not None:
            options |= {"endpoint": self.endpoint, "virtual_hosted_style_request": False}
        if is_anonymous():
            options["skip_signature"] = True
        if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
            options["request_payer"] = True
        return options

    def botocore_options(self) -> dict[str, Any]:
        """Keyword arguments of `boto3.client("s3")`, for scripts that use it beside scenemask."""
        return {} if self.endpoint is None else {"endpoint_url": self.endpoint}


_GOOGLE = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY")
_AZURE = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY",
          "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE")  # fmt: skip


def _lacks(names: tuple[str, ...]) -> bool:
    """Whether the environment has no key of a service, so that requests go out unsigned, as for public buckets."""
    return not any(os.environ.get(name) for name in names)


def is_anonymous() -> bool:
    """Whether requests go out unsigned: where that is asked for, or no key can be found, as for public buckets."""
    asked = os.environ.get("AWS_NO_SIGN_REQUEST")
    if asked is not None:
        return asked.lower() in _YES
    elsewhere = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                 "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip
    return not (
        os.environ.get("AWS_ACCESS_KEY_ID")
        or _profile()
        or any(map(os.environ.get, elsewhere))
        or _is_amazons_machine()
    )


def _profile() -> dict[str, str]:
    """Key of the profile that `AWS_PROFILE` names, or of `default`; keys in the environment win over it."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    name = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.environ.get(variable) or Path.home() / ".aws" / file)
        except (configparser.Error, OSError, UnicodeDecodeError, RuntimeError):
            continue
        if parser.has_section(section):
            found |= dict(parser.items(section))
    if "aws_access_key_id" not in found or "aws_secret_access_key" not in found:
        return {}
    names = {
        "aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token", "region": "region",
    }  # fmt: skip
    return {ours: found[theirs] for theirs, ours in names.items() if theirs in found}


def _is_amazons_machine() -> bool:
    """Whether a role of the machine may hold the key; asking for one elsewhere would wait for an answer in vain."""
    try:
        return "amazon" in Path("/sys/class/dmi/id/sys_vendor").read_text("ascii").lower()
    except (OSError, ValueError):
        return False
