"""Files side by side as one scene: each read where it lies; the first with a usable value at a pixel gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from affine import Affine

from pipeline.errors import InputError
from pipeline.grid import GeoBox
from pipeline.scene.crs import same_wkt
from pipeline.scene.placement import AlongAxes, place
from pipeline.scene.sources import Part, SourcesScene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.scene.base import Scene

_LARGEST = 2**40
"""Pixels of a mosaic; files on other continents make more."""


def make_mosaic(scenes: Sequence[Scene], *, path: str | None, resampling: str, any_grid: bool) -> SourcesScene:
    """The mosaic of scenes with the same bands.

    Args:
        scenes: In the order in which they win; at least one.
        path: Where they were found, if in one place.
        resampling: Kernel of those that need one.
        any_grid: Whether a grid is given elsewhere, so that theirs need not agree.

    Raises:
        InputError: IN-059, their bands or their grids differ.
    """
    first = scenes[0]
    for scene in scenes[1:]:
        if [(b.name, b.scale, b.offset) for b in scene.bands] != [(b.name, b.scale, b.offset) for b in first.bands]:
            raise _refused(scene, first, "other bands, or bands scaled in another way", "put like with like")
    numbers = tuple(band.index for band in first.bands)
    parts = [Part(scene=scene, numbers=numbers, geobox=_on_lattice(scene, first)) for scene in scenes]
    geobox = _union(scenes)
    if geobox is None:
        odd = next(scene for scene in scenes if _offset(scene, first) is None)
        if not any_grid or any(scene.geobox.crs_wkt is None for scene in scenes):
            fix = "say on which grid they are to be read: --crs EPSG:xxxx, or --align FILE"
            raise _refused(odd, first, "another CRS, other pixels, or pixels that do not coincide", fix)
        from pipeline.scene.regrid import grid_in  # noqa: PLC0415 - needs more of PROJ than most mosaics do

        assert first.geobox.crs_wkt is not None
        geobox = grid_in(parts, first.geobox.crs_wkt)
    more = f"_and_{len(scenes) - 1}_more" if len(scenes) > 1 else ""
    made = SourcesScene(
        name=first.name + more,
        path=path,
        kind=f"mosaic of {len(scenes)} files",
        parts=tuple(parts),
        all_bands=first.bands,
        bands=first.bands,
        geobox=geobox,
        resampling=resampling,
        warnings=tuple(dict.fromkeys(text for scene in scenes for text in scene.warnings)),
    )
    return made.on_grid(geobox)


def _union(scenes: Sequence[Scene]) -> GeoBox | None:
    """Grid of the first, made so large that it holds all; None where pixels do not coincide."""
    first = scenes[0].geobox
    top = left = 0
    bottom, right = first.shape
    for scene in scenes:
        offset = _offset(scene, scenes[0])
        if offset is None:
            return None
        top, left = min(top, offset[0]), min(left, offset[1])
        bottom, right = max(bottom, offset[0] + scene.geobox.height), max(right, offset[1] + scene.geobox.width)
    if (bottom - top) * (right - left) > _LARGEST:
        raise InputError(
            f"the files lie so far apart that their mosaic has {bottom - top} x {right - left} pixels",
            code="IN-059",
            title="Files make no mosaic",
            where=scenes[0].name,
            fix="segment them one by one: scenemask batch",
        )
    transform = first.transform @ Affine.translation(left, top)
    return GeoBox(shape=(bottom - top, right - left), transform=transform, crs_wkt=first.crs_wkt)


def _on_lattice(scene: Scene, first: Scene) -> GeoBox | None:
    """Where a scene lies when its corner is moved onto the first one's pixels; None where it is off them."""
    offset = _offset(scene, first)
    if offset is None:
        return None
    transform = first.geobox.transform @ Affine.translation(offset[1], offset[0])
    return GeoBox(shape=scene.geobox.shape, transform=transform, crs_wkt=first.geobox.crs_wkt)


def _offset(scene: Scene, first: Scene) -> tuple[int, int] | None:
    """Row and column of a scene's corner on the first one's grid, within a hundredth of a pixel; None where off it."""
    if scene is first:
        return 0, 0
    if not same_wkt(scene.geobox.crs_wkt, first.geobox.crs_wkt) or scene.geobox.crs_wkt is None:
        return None
    placement = place(scene.geobox, first.geobox)
    if not isinstance(placement, AlongAxes) or placement.factor_yx != (1.0, 1.0):
        return None
    row, col = placement.shift_yx
    near = round(row), round(col)
    return near if max(abs(row - near[0]), abs(col - near[1])) < 0.01 else None  # noqa: PLR2004


def _refused(scene: Scene, first: Scene, what: str, fix: str) -> InputError:
    return InputError(
        f"{scene.name} has {what} than {first.name}",
        code="IN-059",
        title="Files make no mosaic",
        where=getattr(scene, "path", None) or scene.name,
        fix=fix,
    )
