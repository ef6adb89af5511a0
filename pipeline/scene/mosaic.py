"""Files side by side as one scene: each read where it lies; the first with a usable value at a pixel gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.grid import Window
from pipeline.scene.crs import same_wkt
from pipeline.scene.files import MAX_PIXELS
from pipeline.scene.placement import AlongAxes, place
from pipeline.scene.sources import Part, SourcesScene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.scene.base import Scene


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
    if len(scenes) > 1:
        _refuse_nowhere(scenes)
    numbers = tuple(band.index for band in first.bands)
    windows = [_window(scene, first) for scene in scenes]
    parts = [
        Part(scene=scene, numbers=numbers, geobox=None if window is None else first.geobox.window(window))
        for scene, window in zip(scenes, windows, strict=True)
    ]
    on_lattice = [window for window in windows if window is not None]
    if len(on_lattice) == len(scenes):
        geobox = first.geobox.window(_union(on_lattice, first))
    else:
        odd = scenes[windows.index(None)]
        if not any_grid:
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


def _refuse_nowhere(scenes: Sequence[Scene]) -> None:
    """Files without a place would all lie on one another."""
    for scene in scenes:
        lacks = "no CRS" if scene.geobox.crs_wkt is None else "no geotransform"
        if scene.geobox.crs_wkt is None or scene.geobox.transform.is_identity:
            raise InputError(
                f"{scene.name} has {lacks}, so nothing says where it lies beside the other files",
                code="IN-059",
                title="Files make no mosaic",
                where=getattr(scene, "path", None) or scene.name,
                fix="--assume-crs EPSG:xxxx if all lie in that CRS; else write it into the files, or segment them one "
                "by one: scenemask batch",
            )


def _union(windows: Sequence[Window], first: Scene) -> Window:
    """The window that holds all of them."""
    union = Window.from_bounds(
        min(window.row_off for window in windows),
        min(window.col_off for window in windows),
        max(window.row_stop for window in windows),
        max(window.col_stop for window in windows),
    )
    if union.num_pixels > MAX_PIXELS:
        raise InputError(
            f"the files lie so far apart that their mosaic has {union.height} x {union.width} pixels",
            code="IN-059",
            title="Files make no mosaic",
            where=first.name,
            fix="segment them one by one: scenemask batch",
        )
    return union


def _window(scene: Scene, first: Scene) -> Window | None:
    """Where a scene lies on the first one's pixels, its corner moved onto them; None where it is off by a hundredth."""
    height, width = scene.geobox.shape
    if scene is first:
        return Window(row_off=0, col_off=0, height=height, width=width)
    if not same_wkt(scene.geobox.crs_wkt, first.geobox.crs_wkt) or scene.geobox.crs_wkt is None:
        return None
    placement = place(scene.geobox, first.geobox)
    if not isinstance(placement, AlongAxes) or placement.factor_yx != (1.0, 1.0):
        return None
    row, col = placement.shift_yx
    near = round(row), round(col)
    if max(abs(row - near[0]), abs(col - near[1])) >= 0.01:  # noqa: PLR2004
        return None
    return Window(row_off=near[0], col_off=near[1], height=height, width=width)


def _refused(scene: Scene, first: Scene, what: str, fix: str) -> InputError:
    return InputError(
        f"{scene.name} has {what} than {first.name}",
        code="IN-059",
        title="Files make no mosaic",
        where=getattr(scene, "path", None) or scene.name,
        fix=fix,
    )
