"""Quality layer: class numbers of another raster, or of a band of the scene, that take pixels out of the result.

Clouds and shadows in Sentinel-2's SCL, for instance. It may have any resolution and CRS: each pixel of the scene takes
the layer's pixel in which its centre lies, read as the sources of a scene are: window by window, without a resampled
file, and with an answer that does not depend on the window.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import shapely
from pyproj.exceptions import CRSError, ProjError

from pipeline.errors import InputError, UsageError
from pipeline.scene.crs import same_wkt
from pipeline.scene.open import open_scene
from pipeline.scene.placement import transformer_between
from pipeline.scene.regrid import as_sources
from pipeline.scene.rescale import RescaledScene
from pipeline.scene.sources import SourcesScene
from pipeline.scene.validity import can_occur

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from affine import Affine
    from numpy.typing import NDArray

    from pipeline.access import Access
    from pipeline.grid import GeoBox, Window
    from pipeline.scene.base import Scene

    Mapping = Callable[[NDArray[Any], NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]
    """Columns and rows in one grid -> columns and rows in another; the two arrays broadcast against each other."""

_SIDE_PARTS = 64  # vertices per side of the scene's outline in the layer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QualityLayer:
    """Class numbers, and those that take pixels of a scene out; picklable."""

    placed: SourcesScene
    """The layer on the scene's grid: one band, nothing of it nodata."""
    values: tuple[int, ...]
    """Class numbers of pixels that are left out. Where the layer ends, nothing is left out."""
    warnings: tuple[str, ...] = ()
    """What a person should know, one sentence each."""

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Shape `(y, x)`, False where the layer holds one of `values`.

        Law: a window's mask equals that part of the whole scene's mask.

        Raises:
            InputError: IN-005, IN-015 the layer cannot be read, or has changed.
        """
        block = self.placed.read_block(window)
        kept: NDArray[np.bool_] = ~(np.isin(block.data[0], self.values) & block.valid[0])
        return kept

    def digest(self) -> str:
        """BLAKE2b of the layer's identity, read anew, 128 bit."""
        text = json.dumps(self.placed.fingerprint(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
    warnings = _coverage_warning(scene, layer, source)
    placed = as_sources(_as_stored(layer)).on_grid(scene.geobox, resampling="nearest", fixed=True)
    return QualityLayer(placed=placed, values=tuple(values), warnings=warnings)


def _as_stored(layer: Scene) -> Scene:
    """With nodata as a number like others: whoever lists it wants it left out."""
    if isinstance(layer, SourcesScene):
        layer = replace(layer, parts=tuple(replace(part, scene=_as_stored(part.scene)) for part in layer.parts))
    made: Any = layer
    bands, all_bands = (tuple(replace(b, nodata=None) for b in some) for some in (made.bands, made.all_bands))
    return cast("Scene", replace(made, bands=bands, all_bands=all_bands))


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
