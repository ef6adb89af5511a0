"""Where the blocks of a TIFF lie in its file, from its directories alone: finds truncated and never written files.

GDAL opens a cut file without a word and fails at the block that is missing, hours into a run; a file whose writer was
killed reads as zeros. Both show in the offset tables. Knows no GDAL, which has the word where headers are damaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INTEGER_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_OFFSETS = (324, 273)  # TileOffsets, StripOffsets
_SIZES = (325, 279)  # TileByteCounts, StripByteCounts
_MAX_DIRECTORIES = 4096
_MAX_BLOCKS = 2**24  # 128 MiB of 64-bit offsets; larger tables are GDAL's to refuse


class _CutError(Exception):
    """Bytes that a directory points to lie beyond the end of the file."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffLayout:
    """What the directories of a TIFF say about its size."""

    needed_bytes: int
    """Length that the file must have for all its blocks and directories to be there."""
    missing: str
    """What lies furthest beyond the end ("block 7 of image 1"); empty when the file is whole."""
    num_blocks: int
    """Blocks of the first image, all bands together."""
    num_sparse: int
    """Blocks of the first image that were never written (size 0)."""
    num_images: int
    """Directories that hold full-resolution images: pages, not overviews or masks."""

    @property
    def is_blank(self) -> bool:
        """Whether no block of the first image was ever written."""
        return 0 < self.num_blocks == self.num_sparse


def read_tiff_layout(file: BinaryIO) -> TiffLayout | None:
    """Read all directories of a TIFF or BigTIFF; None when its structure cannot be followed."""
    size = file.seek(0, 2)
    try:
        return _Walker(file, size).layout()
    except _CutError as cut:
        return TiffLayout(
            needed_bytes=cut.needed, missing="a directory of blocks", num_blocks=0, num_sparse=0, num_images=0
        )
    except PipelineError:  # a server that fails while we read
        raise
    except (ValueError, OverflowError, MemoryError):
        return None


class _Walker:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.order = ">" if self._bytes_at(0, 2) == b"MM" else "<"
        self.big = self._integer(2, "u2") == 43  # noqa: PLR2004 - BigTIFF's version number
        self.num_images = 0

    def layout(self) -> TiffLayout:
        word = "u8" if self.big else "u4"
        offset = self._integer(8 if self.big else 4, word)
        needed, missing, first, seen = 0, "", (0, 0), set[int]()
        for number in range(_MAX_DIRECTORIES):
            if offset == 0 or offset in seen:
                break
            seen.add(offset)
            tags, offset = self._directory(offset)
            self.num_images += not self._is_reduced_or_mask(tags)
            offsets, sizes = self._table(tags, _OFFSETS), self._table(tags, _SIZES)
            if len(offsets) == 0 or len(offsets) != len(sizes):
                continue  # GDAL estimates what is not there
            if number == 0:
                first = len(offsets), int(np.count_nonzero(sizes == 0))
            ends = offsets.astype(np.float64) + sizes  # exact to 2**53; uint64 could wrap round
            worst = int(ends.argmax())
            if ends[worst] > max(needed, self.size):
                needed = int(ends[worst])
                missing = f"block {worst + 1} of {len(offsets)}" + (f" of directory {number + 1}" if number else "")
        return TiffLayout(
            needed_bytes=max(needed, self.size),
            missing=missing,
            num_blocks=first[0],
            num_sparse=first[1],
            num_images=self.num_images,
        )

    def _directory(self, offset: int) -> tuple[dict[int, tuple[int, int, int]], int]:
        """Tags as {tag: (type, count, where its values are)}, and the offset of the next directory."""
        count = self._integer(offset, "u8" if self.big else "u2")
        head, entry, word = (8, 20, 8) if self.big else (2, 12, 4)
        if count > 65536:  # noqa: PLR2004 - no honest directory is that long
            msg = "not a directory"
            raise ValueError(msg)
        raw = self._bytes_at(offset + head, count * entry + word)
        tags = {}
        for start in range(0, count * entry, entry):
            tag, kind = (int(v) for v in np.frombuffer(raw, self.order + "u2", 2, start))
            num = int(np.frombuffer(raw, f"{self.order}u{word}", 1, start + 4)[0])
            inside = offset + head + start + 4 + word
            fits = _TYPE_SIZES.get(kind, 1) * num <= word
            where = inside if fits else int(np.frombuffer(raw, f"{self.order}u{word}", 1, start + 4 + word)[0])
            tags[tag] = (kind, num, where)
        return tags, int(np.frombuffer(raw, f"{self.order}u{word}", 1, count * entry)[0])

    def _table(self, tags: dict[int, tuple[int, int, int]], wanted: tuple[int, ...]) -> NDArray[np.uint64]:
        for tag in wanted:
            if tag in tags:
                kind, count, where = tags[tag]
                if kind not in _INTEGER_TYPES or count > _MAX_BLOCKS:
                    msg = "not a table of offsets"
                    raise ValueError(msg)
                dtype = np.dtype(self.order + _INTEGER_TYPES[kind])
                return np.frombuffer(self._bytes_at(where, count * dtype.itemsize), dtype).astype(np.uint64)
        return np.empty(0, np.uint64)

    def _is_reduced_or_mask(self, tags: dict[int, tuple[int, int, int]]) -> bool:
        subfile_type = self._table(tags, (254,))
        return len(subfile_type) > 0 and bool(int(subfile_type[0]) & 5)  # 1 overview, 4 mask

    def _integer(self, offset: int, dtype: str) -> int:
        kind = np.dtype(self.order + dtype)
        return int(np.frombuffer(self._bytes_at(offset, kind.itemsize), kind)[0])

    def _bytes_at(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            raise _CutError(offset + count)
        self.file.seek(offset)
        return self.file.read(count)
