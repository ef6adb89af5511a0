"""Quality layer: class numbers of another raster, or of a band of the scene, that take pixels out of the result.

Clouds and shadows in Sentinel-2's SCL, for instance. It may have any resolution and CRS: each pixel of the scene takes
the layer's pixel in which its centre lies, window by window, so that no resampled file is needed and the answer does
not depend on the window.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pyproj.exceptions import CRSError, ProjError

from pipeline.errors import InputError, UsageError
from pipeline.grid import Window
from pipeline.scene.crs import same_wkt
from pipeline.scene.open import open_scene
from pipeline.scene.placement import transformer_between
from pipeline.scene.rescale import RescaledScene
from pipeline.scene.sources import SourcesScene
from pipeline.scene.validity import can_occur

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from affine import Affine
    from numpy.typing import NDArray

    from pipeline.access import Access
    from pipeline.grid import GeoBox
    from pipeline.scene.base import Scene

    Mapping = Callable[[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
    """Columns and rows in one grid -> columns and rows in another; the two arrays broadcast against each other."""

_MOST_PX = 4 * 2**20  # pixels that are looked up, or read from the layer, at a time
_TIE_PX = 1e-6  # a centre this near to the edge of two of the layer's pixels lies in the right or lower one
_SIDE_PARTS = 64  # vertices per side of the scene's outline in the layer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QualityLayer:
    """Class numbers on a grid of their own, and those that take pixels of a scene out; picklable."""

    layer: Scene
    """One band."""
    values: tuple[int, ...]
    """Class numbers of pixels that are left out. Where the layer ends, nothing is left out."""
    geobox: GeoBox
    """Of the scene that it is laid over."""
    warnings: tuple[str, ...] = ()
    """What a person should know, one sentence each."""

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Shape `(y, x)`, False where the layer holds one of `values`.

        Law: a window's mask equals that part of the whole scene's mask.

        Raises:
            InputError: IN-005, IN-015 the layer cannot be read, or has changed.
        """
        if self.layer.geobox == self.geobox:
            return self._wanted(self.layer.read(window)[0])
        kept = np.ones(window.shape, bool)
        self._fill(kept, window, window, _to_layer(self.geobox, self.layer.geobox))
        return kept

    def digest(self) -> str:
        """BLAKE2b of the layer's identity, read anew, 128 bit."""
        text = json.dumps(self.layer.fingerprint(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _wanted(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        wanted: NDArray[np.bool_] = np.isin(stored, self.values, invert=True)
        return wanted

    def _fill(self, kept: NDArray[np.bool_], outer: Window, part: Window, to_layer: Mapping) -> None:
        """Write the part's mask into `kept`, which covers `outer`; in quarters where it is too much at once."""
        if part.num_pixels == 0:
            return
        if part.num_pixels > _MOST_PX:
            self._fill_quarters(kept, outer, part, to_layer)
            return
        cols, rows = (
            np.arange(start, start + count) + 0.5
            for start, count in ((part.col_off, part.width), (part.row_off, part.height))
        )
        x, y = to_layer(cols[np.newaxis, :], rows[:, np.newaxis])
        height, width = self.layer.geobox.shape
        with np.errstate(invalid="ignore"):
            x, y = np.floor(x + _TIE_PX), np.floor(y + _TIE_PX)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)  # False for what cannot be reprojected
        if not inside.any():
            return
        col, row = (np.broadcast_to(v, inside.shape)[inside].astype(np.int64) for v in (x, y))
        found = Window.from_bounds(int(row.min()), int(col.min()), int(row.max()) + 1, int(col.max()) + 1)
        if found.num_pixels > _MOST_PX and part.num_pixels > 1:
            self._fill_quarters(kept, outer, part, to_layer)
            return
        wanted = self._wanted(self.layer.read(found)[0])
        kept[part.slices_in(outer)][inside] = wanted[row - found.row_off, col - found.col_off]

    def _fill_quarters(self, kept: NDArray[np.bool_], outer: Window, part: Window, to_layer: Mapping) -> None:
        rows = part.row_off, part.row_off + (part.height + 1) // 2, part.row_stop
        cols = part.col_off, part.col_off + (part.width + 1) // 2, part.col_stop
        for i in (0, 1):
            for j in (0, 1):
                quarter = Window.from_bounds(rows[i], cols[j], rows[i + 1], cols[j + 1])
                self._fill(kept, outer, quarter, to_layer)


def open_quality_layer(scene: Scene, source: str, values: Sequence[int], *, access: Access | None) -> QualityLayer:
    """Lay a quality layer over a scene.

    Args:
        scene: What is segmented.
        source: Name of a layer that came with the scene (SCL of Sentinel-2), or of one of its bands; else path or
            address of a raster with one band.
        values: Class numbers of pixels that are left out.
        access: How servers are reached.

    Raises:
        InputError: IN-080 the layer has several bands; IN-081 it cannot be placed over the scene; IN-082 it does not
            overlap; what `open_scene` refuses.
        UsageError: CF-101 the layer cannot hold any of the values.
    """
    layer = _layer_of(scene, source, access)
    if layer is None:
        layer = open_scene(source, allow_no_crs=True, class_numbers=True, access=access)
    if len(layer.bands) != 1:
        raise InputError(
            f"the mask layer {layer.name} has {len(layer.bands)} bands, expected one of class numbers",
            code="IN-080",
            title="Mask layer with several bands",
            where=source,
            fix="give a raster with one band, such as SCL.tif, or the name of one of the scene's bands",
        )
    if not any(can_occur(value, layer.dtype) for value in values):
        raise UsageError(
            f"the mask layer holds {layer.dtype}, which can be none of {', '.join(map(str, values))}",
            code="CF-101",
            title="Impossible mask values",
            where="--mask-values",
            fix="give class numbers of the layer; `scenemask inspect` shows its type",
        )
    return QualityLayer(
        layer=layer, values=tuple(values), geobox=scene.geobox, warnings=_coverage_warning(scene, layer, source)
    )


def _layer_of(scene: Scene, name: str, access: Access | None) -> Scene | None:
    """A layer that came with the scene, or one of its bands with class numbers as they are stored; None without."""
    if isinstance(scene, RescaledScene):
        scene = scene.scene
    if isinstance(scene, SourcesScene):
        href = scene.layers.get(name.casefold())
        if href is not None:
            return open_scene(href, allow_no_crs=True, class_numbers=True, access=access)
        scene = scene.on_grid(scene.geobox, resampling="nearest", fixed=True)
    try:
        return scene.select([name])
    except InputError:
        return None


def _coverage_warning(scene: Scene, layer: Scene, source: str) -> tuple[str, ...]:
    """Nothing where the layer covers the whole scene; an error where it covers nothing of it."""
    share = _covered_share(scene.geobox, layer.geobox, source)
    if share <= 0:
        raise InputError(
            f"the mask layer {layer.name} does not overlap the scene",
            code="IN-082",
            title="Mask layer outside the scene",
            where=source,
            fix="give the layer of this scene; compare both on a map",
        )
    if share > 0.999:  # noqa: PLR2004 - less than a pixel's rim in a thousand
        return ()
    return (f"the mask layer covers {share:.0%} of the scene; elsewhere nothing is left out.",)


def _covered_share(geobox: GeoBox, layer: GeoBox, source: str) -> float:
    """Share of the scene's area in the layer's pixel space that lies in the layer."""
    if geobox == layer:
        return 1.0
    try:
        to_layer = _to_layer(geobox, layer)
    except (CRSError, ProjError) as error:
        raise _not_placed(f"{error}", source) from error
    if (geobox.crs_wkt is None) != (layer.crs_wkt is None):
        raise _not_placed(f"{'the scene' if geobox.crs_wkt is None else 'the layer'} has no CRS", source)
    box = shapely.segmentize(shapely.box(0, 0, geobox.width, geobox.height), max(geobox.shape) / _SIDE_PARTS)
    cols, rows = shapely.get_coordinates(box).T
    ring = np.column_stack(to_layer(cols, rows))
    ring = ring[np.isfinite(ring).all(axis=1)]
    if len(ring) < 3:  # noqa: PLR2004 - no area
        return 0.0
    outline = shapely.make_valid(shapely.Polygon(ring))
    if outline.area == 0:
        return 0.0
    return float(outline.intersection(shapely.box(0, 0, layer.width, layer.height)).area / outline.area)


def _not_placed(why: str, source: str) -> InputError:
    return InputError(
        f"the mask layer cannot be laid over the scene: {why}",
        code="IN-081",
        title="Mask layer cannot be placed",
        where=source,
        fix="give a layer with the georeference of the scene, written with gdal_translate -a_srs if it was lost",
    )


def _to_layer(scene: GeoBox, layer: GeoBox) -> Mapping:
    source, target = scene.crs_wkt, layer.crs_wkt
    if source is None or target is None or same_wkt(source, target):
        return functools.partial(_apply, ~layer.transform @ scene.transform)
    transformer = transformer_between(source, target)

    def mapped(cols: NDArray[Any], rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        x, y = np.broadcast_arrays(*_apply(scene.transform, cols, rows))
        return _apply(~layer.transform, *transformer.transform(x, y))

    return mapped


def _apply(t: Affine, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """An axis that the other does not bear upon stays as small as it is."""
    return (t.a * x + t.b * y if t.b else t.a * x) + t.c, (t.d * x + t.e * y if t.d else t.e * y) + t.f
