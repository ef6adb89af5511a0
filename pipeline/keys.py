"""Keys of object storage that this machine has: looked for where each cloud's own tools look, never kept or shown.

GDAL and obstore look for fewer of them than those do, and not for the same: what one of the two finds, both are told.
"""

from __future__ import annotations

import configparser
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UsageError

_AZURES_KEYS = ("AZURE_STORAGE_ACCESS_TOKEN", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_SAS_TOKEN")
_YES = frozenset({"1", "yes", "true", "on"})


class Spelled(NamedTuple):
    """The same settings for two libraries."""

    gdal: dict[str, str]
    """Configuration options."""
    obstore: dict[str, Any]
    """Keyword arguments of a store."""


def amazon(endpoint: str | None) -> Spelled:
    """Of S3 and its like; GDAL reads environment and profile itself.

    Args:
        endpoint: Address of the service; Amazon's own if None.
    """
    found = Spelled({}, {**_profile()})
    if endpoint is not None:
        scheme, _, host = endpoint.partition("://")
        found.gdal.update(
            AWS_S3_ENDPOINT=host, AWS_HTTPS="YES" if scheme == "https" else "NO", AWS_VIRTUAL_HOSTING="FALSE"
        )
        found.obstore.update(endpoint=endpoint, virtual_hosted_style_request=False)
    if is_anonymous():
        found.gdal["AWS_NO_SIGN_REQUEST"] = "YES"
        found.obstore["skip_signature"] = True
    if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
        found.obstore["request_payer"] = True
    return found


def google(endpoint: str | None) -> Spelled:
    """Of Google Cloud Storage: a file of credentials, or a service account's key as JSON; unsigned without.

    Args:
        endpoint: Address of the service; Google's own if None.
    """
    found = Spelled({}, {})
    if endpoint is not None:
        found.gdal["CPL_GS_ENDPOINT"] = f"{endpoint}/"
        found.obstore["base_url"] = endpoint
    file = _first("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")
    file = file or _gcloud_file()
    account = _account_in(_first("GOOGLE_SERVICE_ACCOUNT_KEY"))
    if file:
        found.gdal["GOOGLE_APPLICATION_CREDENTIALS"] = file
        found.obstore["application_credentials"] = file
    elif account:
        found.gdal.update(GS_OAUTH2_PRIVATE_KEY=account[1], GS_OAUTH2_CLIENT_EMAIL=account[0])
        found.obstore["service_account_key"] = _first("GOOGLE_SERVICE_ACCOUNT_KEY")
    elif not _machine_is_of("google"):
        found.gdal["GS_NO_SIGN_REQUEST"] = "YES"
        found.obstore["skip_signature"] = True
    return found


def azure(endpoint: str | None) -> Spelled:
    """Of Azure Blob Storage: a connection string, or an account with a key, a signature or a token; else unsigned.

    Args:
        endpoint: Address of the service; the account follows in the path, unless the host begins with it.

    Raises:
        UsageError: CF-057, no account is named.
    """
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    told = {key.strip(): value for key, _, value in (part.partition("=") for part in text.split(";"))}
    account = told.get("AccountName") or _first("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise UsageError(
            "az:// addresses name a container, and the environment does not say whose",
            code="CF-057",
            title="Storage account is missing",
            where="AZURE_STORAGE_ACCOUNT",
            fix="export AZURE_STORAGE_ACCOUNT=name, or AZURE_STORAGE_CONNECTION_STRING",
        )
    key = told.get("AccountKey") or _first("AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")
    signature = told.get("SharedAccessSignature") or _first("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")
    token = _first("AZURE_STORAGE_ACCESS_TOKEN", "AZURE_STORAGE_TOKEN")
    # Whatever is not told here, GDAL would look for itself.
    silent = "AZURE_STORAGE_CONNECTION_STRING", *_AZURES_KEYS
    found = Spelled({**dict.fromkeys(silent, ""), "AZURE_STORAGE_ACCOUNT": account}, {"account_name": account})
    where = _azure_address(endpoint, account) or told.get("BlobEndpoint", "").rstrip("/")
    if where:
        found.gdal["CPL_AZURE_ENDPOINT"] = where
        found.obstore["endpoint"] = where
    if token:
        found.gdal[_AZURES_KEYS[0]], found.obstore["token"] = token, token
    elif key:
        found.gdal[_AZURES_KEYS[1]], found.obstore["account_key"] = key, key
    elif signature:
        signature = signature.removeprefix("?")
        found.gdal[_AZURES_KEYS[2]], found.obstore["sas_key"] = signature, signature
    elif not _first("AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"):
        found.gdal["AZURE_NO_SIGN_REQUEST"] = "YES"
        found.obstore["skip_signature"] = True
    return found


def is_anonymous() -> bool:
    """Whether requests to S3 go out unsigned: where that is asked for, or no key is found, as for public buckets."""
    asked = os.environ.get("AWS_NO_SIGN_REQUEST")
    if asked is not None:
        return asked.lower() in _YES
    elsewhere = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                 "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip
    return not (os.environ.get("AWS_ACCESS_KEY_ID") or _profile() or _first(*elsewhere) or _machine_is_of("amazon"))


def _first(*names: str) -> str:
    """Of the environment; empty without."""
    return next((value for name in names if (value := os.environ.get(name))), "")


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


def _gcloud_file() -> str:
    """What `gcloud auth application-default login` has written."""
    try:
        home = os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud"
    except RuntimeError:
        return ""
    file = Path(home) / "application_default_credentials.json"
    return str(file) if file.is_file() else ""


def _account_in(text: str) -> tuple[str, str] | None:
    """(address, private key) of a service account."""
    try:
        told = json.loads(text) if text else {}
        return str(told["client_email"]), str(told["private_key"])
    except (ValueError, KeyError, TypeError):
        return None


def _azure_address(endpoint: str | None, account: str) -> str:
    if endpoint is None:
        return ""
    host = endpoint.partition("://")[2]
    return endpoint if host.startswith(f"{account}.") else f"{endpoint}/{account}"


def _machine_is_of(vendor: str) -> bool:
    """Whether a role of the machine may hold the key; asking for one elsewhere would wait for an answer in vain."""
    try:
        return vendor in Path("/sys/class/dmi/id/sys_vendor").read_text("ascii").lower()
    except (OSError, ValueError):
        return False
