"""Sizes and times as people write them, and what is said about keys and values that are wrong."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def parse_bytes(value: Any) -> Any:
    """`8GB` or `512MiB` as bytes; what is no text is left to the field.

    Raises:
        ValueError: The text is no size.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]+)\s*", value)
    if match is None or match.group(2).upper() not in _BYTES:
        msg = f"{value!r} is not a size; write `8GB` or `512MiB`"
        raise ValueError(msg)
    return int(float(match.group(1)) * _BYTES[match.group(2).upper()])


def parse_seconds(value: Any) -> Any:
    """`90 s`, `30 min`, `12 h`, `2 d` or `HH:MM:SS` as seconds; what is no text is left to the field.

    Raises:
        ValueError: The text is no time.
    """
    if not isinstance(value, str):
        return value
    clock = re.fullmatch(r"([0-9]{1,4}):([0-5][0-9]):([0-5][0-9])", value.strip())
    if clock is not None:
        hours, minutes, seconds = (int(part) for part in clock.groups())
        return 3600 * hours + 60 * minutes + seconds
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*(s|min|h|d)\s*", value)
    if match is None:
        msg = f"{value!r} is not a time; write `90 s`, `30 min`, `12 h`, `2 d` or `12:00:00`"
        raise ValueError(msg)
    return int(float(match.group(1)) * _SECONDS[match.group(2)])


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What is said of a key that nobody knows, with the nearest one that is known."""
    nearest = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"unknown key {key!r}" + (f", did you mean {nearest[0]!r}?" if nearest else "")


def sentence(detail: Any) -> str:
    """One problem that pydantic found, in a sentence.

    Args:
        detail: An item of `ValidationError.errors()`.
    """
    place = ".".join(str(part) for part in detail["loc"])
    text = str(detail["msg"]).removeprefix("Value error, ")
    return f"{place}: {text}, got {detail['input']!r}" if place else text
