"""`preview.png`: the scene beside its mask, with a legend. What a person looks at first; nothing builds on it."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.enums import Resampling

from pipeline.report.glyphs import GLYPH_HEIGHT, text_pixels
from pipeline.store.ahead import in_order
from pipeline.store.files import atomic_write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.legend import ClassInfo, Legend

Picture = np.ndarray[Any, np.dtype[np.uint8]]

_PAPER = 250
_INK = (45, 45, 45)
_GAP_PX = 12
_BLEND = 0.62
_TEXT_SCALE = 2
_MIN_WIDTH_PX = 480
_MAX_NAME = 28


def write_preview(
    path: Path,
    *,
    rgb: NDArray[np.uint8],
    mask: NDArray[np.generic],
    legend: Legend,
    scale: int = 1,
    class_px: Sequence[int] | None = None,
    valid_px: int | None = None,
) -> None:
    """Write the picture as PNG.

    Args:
        path: Replaced whole or left alone.
        rgb: Scene `(y, x, 3)`, contrast stretched; nodata as paper.
        mask: Classes `(y, x)` or, where they overlap, `(class, y, x)`; same size.
        legend: Names and colours.
        scale: Whole number that enlarges every pixel, for small scenes.
        class_px: Pixels per class of the whole mask, for the shares in the legend; None counts the small one.
        valid_px: Pixels that have a class, or could have one, of the whole mask; None counts those of `mask`.

    Raises:
        ResourceError: RS-001, no space.
        ValueError: `rgb` and `mask` differ in size.
    """
    if rgb.shape != (*mask.shape[-2:], 3):
        msg = f"rgb and mask are of one size, got {rgb.shape} and {mask.shape}"
        raise ValueError(msg)
    counts = [int(n) for n in legend.class_px(mask)] if class_px is None else class_px
    valid = int(legend.is_valid(mask).sum()) if valid_px is None else valid_px
    grown = np.ones((scale, scale), np.uint8)
    panels = [np.kron(p, grown[..., np.newaxis]) for p in (rgb, overlay(rgb, mask, legend))]
    atomic_write_bytes(path, encode_png(compose(panels[0], panels[1], _captions(counts, valid, legend))))


def overlay(rgb: NDArray[np.uint8], mask: NDArray[np.generic], legend: Legend) -> Picture:
    """The scene in pale grey with its classes in colour over it; `(y, x, 3)`.

    Background stays grey, and nodata is paper. Where classes overlap, the rarer lies on top.
    """
    grey = np.rint(rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    pale = np.repeat((70 + np.arange(256, dtype=np.float32) * (185 / 255))[:, np.newaxis], 3, axis=1)
    shades = [pale, np.full_like(pale, _PAPER)]  # (grey, channel) each: background, nodata, then the classes
    shown = _topmost(mask, legend) if legend.multilabel else mask
    which = np.where(legend.is_valid(mask), 0, 1).astype(np.uint16)
    for info in legend:
        if not info.background:
            which[(shown == info.value) & (which != 1)] = len(shades)
            shades.append(pale + _BLEND * (np.array(info.color, np.float32) - pale))
    return np.rint(shades).astype(np.uint8)[which, grey]


def _topmost(mask: NDArray[np.generic], legend: Legend) -> NDArray[np.int64]:
    """`(y, x)`: the rarest of a pixel's classes in this picture, -1 for none."""
    top = np.full(mask.shape[1:], -1)
    for value in np.argsort(-legend.class_px(mask), kind="stable"):
        top[mask[value] == 1] = value
    return top


def compose(scene: NDArray[np.uint8], colored: NDArray[np.uint8], captions: Sequence[tuple[ClassInfo, str]]) -> Picture:
    """Both panels side by side, or one above the other where the scene is wide, over the legend."""
    height, width = scene.shape[:2]
    gap = np.full((height, _GAP_PX, 3), _PAPER, np.uint8)
    if width > 2 * height:
        flat = np.full((_GAP_PX, width, 3), _PAPER, np.uint8)
        body = np.concatenate([scene, flat, colored], axis=0)
    else:
        body = np.concatenate([scene, gap, colored], axis=1)
    if body.shape[1] < _MIN_WIDTH_PX:
        side = _MIN_WIDTH_PX - body.shape[1]
        body = np.pad(body, ((0, 0), (0, side), (0, 0)), constant_values=_PAPER)
    strip = _legend_strip(captions, body.shape[1])
    whole = np.concatenate([body, strip], axis=0)
    return np.pad(whole, ((_GAP_PX, _GAP_PX), (_GAP_PX, _GAP_PX), (0, 0)), constant_values=_PAPER)


def read_overview_mask(mask_path: Path, legend: Legend, *, shape: tuple[int, int]) -> NDArray[np.generic]:
    """The mask reduced to `shape`, `(y, x)` or `(class, y, x)`; takes an overview where there is one.

    Raises:
        RasterioError: The mask cannot be read.
    """
    with rasterio.open(mask_path, driver="GTiff") as source:
        bands, out_shape = (None, (source.count, *shape)) if legend.multilabel else (1, shape)
        return np.asarray(source.read(bands, out_shape=out_shape, resampling=Resampling.nearest))


def stretch_rgb(pixels: NDArray[Any], valid: NDArray[np.bool_]) -> Picture:
    """Bands `(band, y, x)`, one or three, any dtype -> picture `(y, x, 3)`, each band between its percentiles."""
    bands = [_stretched(band.astype(np.float32), valid) for band in pixels[:3]]
    return np.stack([bands[channel % len(bands)] for channel in range(3)], axis=-1)


def _stretched(band: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """One band, `(y, x)`. By whole rows of memory: picking the valid ones out takes four times as long."""
    out = np.full(valid.shape, _PAPER, np.uint8)
    if valid.any():
        low, high = np.percentile(band if valid.all() else band[valid], (2, 98))
        span = max(float(high - low), 1e-6)
        with np.errstate(invalid="ignore"):  # where it is not valid
            shade = np.rint(np.clip((band - low) / span, 0, 1) * 255)
            np.copyto(out, shade, where=valid, casting="unsafe")
    return out


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """A picture `(y, x, 3)` as PNG; equal pictures give equal bytes."""
    height, width = picture.shape[:2]
    # Filter "Sub": each pixel as its difference from the one before, which deflate likes better.
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1
    flat = picture.reshape(height, 3 * width)
    rows[:, 1:] = flat
    rows[:, 4:] -= flat[:, :-3]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", _deflated(rows)), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _deflated(rows: NDArray[np.uint8]) -> bytes:
    """Rows as one zlib stream, strip by strip in several threads; strips are the same however many there are.

    A flush ends each strip at a whole byte, so that they can be put one behind the other (RFC 1950, RFC 1951).
    """
    strips = [rows[first : first + _STRIP_ROWS] for first in range(0, len(rows), _STRIP_ROWS)]

    def deflate(number: int) -> bytes:
        made = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS)
        last = number == len(strips) - 1
        return made.compress(strips[number]) + made.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)

    parts = in_order(deflate, range(len(strips)))
    return b"".join([_ZLIB_HEADER, *parts, struct.pack(">I", zlib.adler32(rows))])


_LEVEL = 4
_STRIP_ROWS = 128
_ZLIB_HEADER = b"\x78\x5e"
"""Deflate, a window of 32 KiB, no dictionary, a fast level."""


def _captions(counts: Sequence[int], valid: int, legend: Legend) -> list[tuple[ClassInfo, str]]:
    """Classes that occur, with their share of the pixels that are not nodata."""
    return [(c, f"{c.name[:_MAX_NAME]} {100 * n / valid:.1f}%") for c, n in zip(legend, counts, strict=True) if n]


def _legend_strip(captions: Sequence[tuple[ClassInfo, str]], width: int) -> Picture:
    """Colour boxes with captions, as many lines as they need."""
    line, box = GLYPH_HEIGHT * _TEXT_SCALE + 10, GLYPH_HEIGHT * _TEXT_SCALE
    placed: list[tuple[int, int, ClassInfo, NDArray[np.bool_]]] = []
    x = y = 0
    for info, caption in captions:
        ink = text_pixels(caption, scale=_TEXT_SCALE)
        taken = box + 8 + ink.shape[1] + 20
        if x and x + taken > width:
            x, y = 0, y + line
        placed.append((x, y, info, ink[:, : max(0, width - x - box - 8)]))
        x += taken
    strip = np.full((_GAP_PX + y + line if placed else 0, width, 3), _PAPER, np.uint8)
    for left, top, info, ink in placed:
        upper = top + _GAP_PX
        strip[upper : upper + box, left : left + box] = _INK
        strip[upper + 1 : upper + box - 1, left + 1 : left + box - 1] = _box_color(info)
        text = strip[upper + 1 : upper + 1 + ink.shape[0], left + box + 8 : left + box + 8 + ink.shape[1]]
        text[ink] = _INK
    return strip


def _box_color(info: ClassInfo) -> tuple[int, int, int]:
    """As the class looks over middle grey; background is that grey."""
    if info.background:
        return 190, 190, 190
    red, green, blue = (round(165 + _BLEND * (c - 165)) for c in info.color)
    return red, green, blue
