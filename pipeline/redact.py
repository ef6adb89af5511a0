"""Takes secrets out of text: query strings, names and passwords in addresses, keys. Every sink passes through here."""

from __future__ import annotations

import os
import re

_RULES = (
    (re.compile(r"(\w://)[^\s/@'\"<>]+@"), r"\1***@"),
    # Signatures stand in query strings; libraries print those behind whole addresses and behind mere file names.
    (re.compile(r"(\w://[^\s?'\"<>]*)\?[^\s'\"<>)]*"), r"\1?***"),
    (re.compile(r"\?[\w.%~-]+=[^\s'\"<>)]*"), "?***"),
    (re.compile(r"(?i)\b(x-amz-[\w-]+|sig|signature|(?:access_)?token|secret|password)=[^\s&'\"<>)]+"), r"\1=***"),
    (re.compile(r"(?i)\b(authorization|x-amz-security-token)(['\"]?\s*[:=]\s*['\"]?)[^\r\n'\"]+"), r"\1\2***"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), "***"),
)
_IN_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_LEAST_LENGTH = 6
"""Shorter values are no keys, and may be part of any word."""


def redact(text: str) -> str:
    """`text` with `***` in the place of what should not be read by others; what holds no secret comes back as it is."""
    for name in _IN_ENVIRONMENT:
        value = os.environ.get(name, "")
        if len(value) >= _LEAST_LENGTH:
            text = text.replace(value, "***")
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
