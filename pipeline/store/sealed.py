"""Documents of ours with a checksum in them: a run is neither continued nor judged by what somebody has changed."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEY = "checksum"


def sealed(document: Mapping[str, object]) -> dict[str, object]:
    """The document with the checksum of all else that is in it."""
    return {**document, _KEY: _checksum(document)}


def unsealed(document: Mapping[str, object] | None) -> dict[str, object] | None:
    """What `sealed` was given; None where there is nothing, or something else."""
    if document is None or document.get(_KEY) != _checksum(document):
        return None
    return {key: value for key, value in document.items() if key != _KEY}


def _checksum(document: Mapping[str, object]) -> str:
    rest = {key: value for key, value in document.items() if key != _KEY}
    as_read = json.loads(json.dumps(rest))  # numbers as keys are in another order than the strings that they become
    return hashlib.blake2b(json.dumps(as_read, sort_keys=True).encode(), digest_size=16).hexdigest()
