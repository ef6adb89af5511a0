"""Scratch store of a run: one Zarr v3 shard per tile core, checksummed. Knows no ledger: what is done is told there.

Facts that shape it: Zarr reads a missing chunk as fill value without a word, and two writers of one shard lose
pixels, so a shard has one writer and a record in the ledger. Without crc32c most flipped bits go unnoticed.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from pipeline.errors import InfrastructureError
from pipeline.grid import Window, iter_windows
from pipeline.store.damage import DamagedTilesError, list_windows
from pipeline.store.digest import sha256_array
from pipeline.store.place import as_place
from pipeline.store.probabilities import PROBABILITY_NODATA
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.store.place import Place

_WHOLE_CHUNK_PX = 1024
_MIN_CHUNK_PX = 256
_SHARD_UNIT_PX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TileDigest:
    """What the ledger remembers of a written tile."""

    mask_sha256: str
    """Of the mask's bytes, rows from the top, little-endian; 64 hex digits."""
    prob_sha256: str | None
    """Of the probabilities' bytes `(class, y, x)`; None when they are not kept."""


def chunk_side(shard_px: int) -> int:
    """Side of the inner chunks of a shard: its largest divisor from 256 to 1024, else the whole shard.

    Larger chunks cost less to encode (a shard of 1664² in 10 ms with chunks of 832, 16 ms with 416); smaller ones
    let a reader take part of a shard.
    """
    if shard_px <= _WHOLE_CHUNK_PX:
        return shard_px
    fitting = (side for side in range(_WHOLE_CHUNK_PX, _MIN_CHUNK_PX - 1, -1) if shard_px % side == 0)
    return next(fitting, shard_px)


@dataclass(frozen=True, slots=True)
class TileStore:
    """Mask and probabilities of a run, by tile. A value: it pickles as its place and opens arrays when asked.

    Writers on different tiles may run at once, in threads and processes. The last write of one tile wins whole.
    """

    place: Place
    """A folder on a file system that all workers share, or a prefix of a bucket."""

    @classmethod
    def create(
        cls,
        where: Path | Place,
        *,
        shape: tuple[int, int],
        dtype: str,
        fill: int,
        shard_hw: tuple[int, int],
        mask_bands: int | None = None,
        num_classes: int | None = None,
    ) -> TileStore:
        """Lay out an empty store.

        Args:
            where: Folder, made if absent, or place; must hold no store yet.
            shape: (height, width) of the scene.
            dtype: Of the mask, `uint8` or `uint16`.
            fill: Nodata value of the mask.
            shard_hw: (height, width) of a tile's core before clipping to the scene.
            mask_bands: Classes of the mask where they overlap, each a band; None for one band of class values.
            num_classes: Rows of the probabilities; None when they are not kept.

        Raises:
            ResourceError: RS-001, no space.
            UsageError: CF-002, the folder cannot be made.
            InfrastructureError: ST-010 to ST-013, the bucket fails.
        """
        place = as_place(where)
        place.make()
        # A shard is stored whole, the part beyond the scene as fill: then no write has to read first, and a tile
        # whose shard is damaged can be written again.
        stored = tuple(min(t, -(-s // _SHARD_UNIT_PX) * _SHARD_UNIT_PX) for t, s in zip(shard_hw, shape, strict=True))
        padded = tuple(-(-s // t) * t for s, t in zip(shape, stored, strict=True))
        attributes = {"shape": list(shape), "tile_hw": list(shard_hw), "id": secrets.token_hex(8)}
        with place.failures():
            bands = () if mask_bands is None else (mask_bands,)
            mask, shard = (*bands, *padded), (*bands, *stored)
            _create_array(place / "mask", mask, shard, dtype=dtype, fill=fill, attributes=attributes)
            if num_classes is not None:
                _create_array(
                    place / "probabilities",
                    (num_classes, *padded),
                    (num_classes, *stored),
                    dtype="uint8",
                    fill=PROBABILITY_NODATA,
                    attributes=attributes,
                )
        return cls(place)

    @classmethod
    def open(cls, where: Path | Place) -> TileStore:
        """An existing store.

        Raises:
            FileNotFoundError: There is none at `where`.
        """
        store = cls(as_place(where))
        store.shape  # noqa: B018 - fails here rather than in a worker
        return store

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the scene."""
        return _scene(_array(self.place / "mask")).shape

    @property
    def identity(self) -> str:
        """By which a process knows that it sees this store, and not another one under the same path."""
        return str(_array(self.place / "mask").attrs.get("id", ""))

    @property
    def has_probabilities(self) -> bool:
        """Whether probabilities are kept."""
        return (self.place / "probabilities").has("zarr.json")

    def write(
        self, window: Window, mask: NDArray[np.generic], probabilities: NDArray[np.uint8] | None = None
    ) -> TileDigest:
        """Write one tile; as often as one likes, with the same bytes each time.

        Args:
            window: The tile's core: one shard, clipped to the scene.
            mask: `(y, x)`, dtype of the store; `(class, y, x)` where classes overlap.
            probabilities: `(class, y, x)`, uint8 as `quantize_probabilities` gives; needed if the store keeps them.

        Raises:
            ResourceError: RS-001, no space.
            InfrastructureError: ST-010 to ST-013, the bucket fails.
        """
        array = _array(self.place / "mask")
        _check_tile(window, array)
        _write_shard(self.place, array, window, mask)
        assert (probabilities is not None) == self.has_probabilities, "probabilities are kept for all tiles or none"
        if probabilities is not None:
            _write_shard(self.place, _array(self.place / "probabilities"), window, probabilities)
        return TileDigest(
            mask_sha256=sha256_array(mask),
            prob_sha256=None if probabilities is None else sha256_array(probabilities),
        )

    def read_mask(self, window: Window) -> NDArray[np.generic]:
        """Mask `(y, x)` or `(class, y, x)` of any window inside the scene; nodata where no tile was written.

        Raises:
            DamagedTilesError: ST-001, a shard fails its checksum; names the tiles.
        """
        return self._read("mask", window)

    def read_probabilities(self, window: Window) -> NDArray[np.uint8]:
        """Probabilities `(class, y, x)`, uint8, of any window inside the scene; 255 where no tile was written.

        Raises:
            DamagedTilesError: ST-001, a shard fails its checksum; names the tiles.
        """
        return self._read("probabilities", window).astype(np.uint8, copy=False)

    def find_damaged(self, tiles: Iterable[Window], digests: Mapping[int, TileDigest | None]) -> list[int]:
        """Indices of the tiles whose stored pixels are not the recorded ones; `None` records an empty tile.

        A tile without an entry in `digests` is not looked at. Reads every shard once.
        """
        return [i for i, window in enumerate(tiles) if i in digests and not self._holds(window, digests[i])]

    def remove_partials(self) -> int:
        """Delete what killed writers left half-written; only for the holder of the run's lock, before workers start."""
        return self.place.sweep()

    def _holds(self, window: Window, digest: TileDigest | None) -> bool:
        try:
            mask = self.read_mask(window)
            if digest is None:
                return bool((mask == _array(self.place / "mask").fill_value).all())
            if sha256_array(mask) != digest.mask_sha256:
                return False
            wanted = digest.prob_sha256
            return wanted is None or sha256_array(self.read_probabilities(window)) == wanted
        except DamagedTilesError:
            return False

    def _read(self, name: str, window: Window) -> NDArray[np.generic]:
        array = _array(self.place / name)
        assert window.intersect(_scene(array)) == window, f"{window} leaves the scene"
        try:
            return _get(self.place, array, window)
        except (MemoryError, InfrastructureError):
            raise
        except Exception as error:
            damaged = _damaged_tiles(self.place, array, window)
            if not damaged:
                raise
            raise DamagedTilesError(
                f"{len(damaged)} tile(s) of the scratch store fail their checksum: {list_windows(damaged)}",
                code="ST-001",
                title="Scratch tile is damaged",
                where=f"{self.place / name}, {damaged[0]}",
                fix="run the same command again: these tiles are computed anew; if it repeats, check the disk",
                windows=damaged,
            ) from error


def _create_array(
    place: Place,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    *,
    dtype: str,
    fill: int,
    attributes: dict[str, Any],
) -> None:
    chunks = (*(1 for _ in shape[:-2]), chunk_side(shard[-2]), chunk_side(shard[-1]))
    sharding = ShardingCodec(
        chunk_shape=chunks,
        codecs=[BytesCodec(endian="little"), ZstdCodec(level=1), Crc32cCodec()],
        index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
    )
    zarr.create_array(
        place.arrays(),
        shape=shape,
        chunks=shard,
        dtype=dtype,
        fill_value=fill,
        serializer=sharding,
        filters=None,
        compressors=None,
        attributes=attributes,
        zarr_format=3,
    )


def _array(place: Place) -> zarr.Array[Any]:
    with place.failures():
        array = zarr.open_array(place.arrays(), mode="r+", zarr_format=3)
    # Comparing every chunk with the fill value costs twice what storing it does: zstd shrinks it to a few bytes. Asked
    # for here, because `open_array` takes a `config` and forgets it (Zarr 3.1.6).
    return array.with_config({"write_empty_chunks": True})


def _get(place: Place, array: zarr.Array[Any], window: Window) -> NDArray[np.generic]:
    rows = slice(window.row_off, window.row_stop)
    cols = slice(window.col_off, window.col_stop)
    with place.failures():
        return np.asarray(array[..., rows, cols])


def _scene(array: zarr.Array[Any]) -> Window:
    """The whole scene; the array itself ends with the last shard."""
    height, width = _pair(array, "shape")
    return Window(row_off=0, col_off=0, height=height, width=width)


def _pair(array: zarr.Array[Any], name: str) -> tuple[int, int]:
    first, second = cast("list[int]", array.attrs[name])
    return first, second


def _check_tile(window: Window, array: zarr.Array[Any]) -> None:
    tile_h, tile_w = _pair(array, "tile_hw")
    whole = Window(row_off=window.row_off, col_off=window.col_off, height=tile_h, width=tile_w)
    aligned = window.row_off % tile_h == 0 and window.col_off % tile_w == 0
    assert aligned, f"{window} does not begin where a tile begins"
    assert whole.intersect(_scene(array)) == window, f"{window} is not one whole tile"


def _write_shard(place: Place, array: zarr.Array[Any], window: Window, pixels: NDArray[np.generic]) -> None:
    assert pixels.shape[-2:] == window.shape, f"pixels {pixels.shape} do not fit {window}"
    assert pixels.dtype == array.dtype, f"{pixels.dtype} pixels for a store of {array.dtype}"
    shards = array.shards
    assert shards is not None
    shard_h, shard_w = shards[-2:]
    rows = slice(window.row_off, window.row_off + shard_h)
    cols = slice(window.col_off, window.col_off + shard_w)
    if window.shape != (shard_h, shard_w):
        whole = np.full((*pixels.shape[:-2], shard_h, shard_w), array.fill_value, pixels.dtype)
        whole[..., : window.height, : window.width] = pixels
        pixels = whole
    with place.failures(needed_bytes=pixels.nbytes):
        reached("before-shard")
        try:
            array[..., rows, cols] = pixels
        except ValueError:  # Zarr reads the index of a shard that is there before it replaces it, even whole
            _remove_shard(array, window)
            array[..., rows, cols] = pixels
        reached("after-shard")


def _remove_shard(array: zarr.Array[Any], window: Window) -> None:
    shards = array.shards
    assert shards is not None
    place = (*(0 for _ in shards[:-2]), window.row_off // shards[-2], window.col_off // shards[-1])
    asyncio.run((array.store_path / array.metadata.encode_chunk_key(place)).delete())


def _damaged_tiles(place: Place, array: zarr.Array[Any], window: Window) -> list[Window]:
    """Tiles under `window` that cannot be read on their own."""
    tile_h, tile_w = _pair(array, "tile_hw")
    row_off, col_off = window.row_off // tile_h * tile_h, window.col_off // tile_w * tile_w
    under = iter_windows((window.row_stop - row_off, window.col_stop - col_off), (tile_h, tile_w))
    whole = (
        Window(row_off=w.row_off + row_off, col_off=w.col_off + col_off, height=tile_h, width=tile_w) for w in under
    )
    tiles = (tile.intersect(_scene(array)) for tile in whole)
    return [tile for tile in tiles if not _readable(place, array, tile)]


def _readable(place: Place, array: zarr.Array[Any], window: Window) -> bool:
    try:
        _get(place, array, window)
    except InfrastructureError:
        raise
    except Exception:  # noqa: BLE001 - whatever stops a read makes the tile unusable
        return False
    return True
