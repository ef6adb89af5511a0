"""SHA-256 of pixels and of files: how a tile is recognised in the ledger, the store and the finished mask."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_READ_BYTES = 1 << 20


def pixel_bytes(array: NDArray[np.generic]) -> memoryview:
    """The bytes of an array in C order, little-endian: the same on every machine. No copy where none is needed."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return memoryview(little.reshape(-1).view(np.uint8))


def sha256_array(array: NDArray[np.generic]) -> str:
    """SHA-256 of the pixels in C order, as 64 hex digits. The shape is not part of it: a tile's window is known."""
    return hashlib.sha256(pixel_bytes(array)).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
