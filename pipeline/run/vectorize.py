"""Mask files to polygons: names from the masks, formats from the file's suffix."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from rasterio.errors import RasterioError

from pipeline import vector
from pipeline.errors import InputError, UsageError
from pipeline.run.fetch import workplace
from pipeline.run.settings import make_settings
from pipeline.scene.magic import driver_of, read_ends
from pipeline.store import read_legend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import geopandas

    from pipeline.access import Access
    from pipeline.legend import Legend
    from pipeline.run.fetch import Workplace
    from pipeline.run.settings import SegmentSettings
    from pipeline.vector import Hands, Outcome, PolygonSet, WrittenPolygons


class Cleaning(TypedDict, total=False):
    """What is done to polygons; each as in `SegmentSettings`, whose defaults hold."""

    min_area: float | str | None
    """Smallest polygon kept, in m2 on the ellipsoid or as `12 px`."""
    fill_holes: float | str | None
    """Holes below this are filled, in m2 or as `12 px`; polygons inside them go."""
    connectivity: Literal[4, 8]
    """8 makes one multi-polygon of regions of a class that touch at a corner."""
    sieve: bool
    """Give polygons below `min_area` to the neighbour with the longest shared border instead of leaving holes."""
    smooth: bool
    """Staircases become straight diagonals, without gaps or overlaps."""
    simplify: float | str | None
    """Corners whose triangle is smaller than the square of this go, in metres or as `1 px`; shared edges move once for
    both sides."""
    regularize: Sequence[str | int] | str
    """Classes by name or value whose polygons get straight walls and right angles; neighbours follow."""
    min_iou: float
    """Polygons that regularization would change by more keep their outline."""


def vectorize(
    mask: str | Path | Sequence[str | Path],
    *,
    only: Sequence[str | int] | None = None,
    probabilities: str | Path | None = None,
    access: Access | None = None,
    **cleaning: Unpack[Cleaning],
) -> geopandas.GeoDataFrame:
    """Polygons of a mask, exact across tiles, in the mask's CRS.

    Args:
        mask: GeoTIFF with one band of class values, or a mask of ours with a band for each of overlapping classes; or
            several that share one grid and their classes, traced as one. Where they overlap, the first that has a class
            at a pixel gives it.
        only: Classes by name or value; all but the background when None.
        probabilities: The `probabilities.tif` of the same run, to tell how sure the network was of each polygon.
        access: How servers are reached, for files given as addresses: they are fetched whole.
        cleaning: See `Cleaning`.

    Raises:
        PipelineError: A mask cannot be read, has no such class, or does not fit the others.
    """
    with workplace(access) as work:
        masks, sure = _fetched(work, _paths(mask), probabilities)
        with _polygons(masks, only, cleaning, probabilities=sure) as polygons:
            return vector.to_geodataframe(polygons)


def _fetched(
    work: Workplace, masks: Sequence[str | Path], probabilities: str | Path | None
) -> tuple[list[Path], Path | None]:
    """Paths on this machine; names of classes lie beside a mask."""
    return [work.local(mask, beside=(".aux.xml",)) for mask in masks], (
        None if probabilities is None else work.local(probabilities)
    )


def vectorize_to_file(
    mask: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    only: Sequence[str | int] | None = None,
    probabilities: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    access: Access | None = None,
    workers: int = 1,
    **cleaning: Unpack[Cleaning],
) -> WrittenPolygons:
    """The same, written to a file; in bounded memory unless polygons are regularized.

    Args:
        mask: As for `vectorize`.
        output: `.geojson`, `.gpkg`, `.fgb` or `.parquet`; a path, or an `s3://` address.
        only: As for `vectorize`.
        probabilities: As for `vectorize`.
        overwrite: Replace a file that is there.
        progress: Called with (steps done, steps in all).
        access: As for `vectorize`.
        workers: Processes that trace; the file is the same.
        cleaning: See `Cleaning`.

    Raises:
        PipelineError: As `vectorize`; or the file cannot be written.
    """
    with workplace(access) as work, work.output(output, overwrite=overwrite) as path:
        masks, sure = _fetched(work, _paths(mask), probabilities)
        scratch = path.parent if path.parent.is_dir() else None
        with (
            _hands(workers) as hands,
            _polygons(
                masks, only, cleaning, probabilities=sure, scratch=scratch, progress=progress, hands=hands
            ) as polygons,
        ):
            return vector.write_polygons(polygons, path, overwrite=overwrite)


def _hands(workers: int) -> AbstractContextManager[Hands | None]:
    if workers == 1:
        return contextlib.nullcontext()
    from pipeline.run.tracers import local_hands  # noqa: PLC0415 - Dask takes a second to import

    return local_hands(make_settings({"workers": workers}))


def classes_to_polygonize(legend: Legend | None, only: Sequence[str | int] | None) -> frozenset[int] | None:
    """Class values wanted: `only`, or all but the background; None for all.

    Raises:
        UsageError: CF-033 for a class that the mask does not have. Numbers are trusted where it has no names.
    """
    if only is None:
        if legend is None or legend.background is None:
            return None
        return frozenset(c.value for c in legend if not c.background)
    chosen = _class_values(legend, only)
    if not chosen:
        raise _no_class("class without a name", {c.name: c.value for c in legend} if legend else {})
    return chosen


def _class_values(legend: Legend | None, names: Sequence[str | int]) -> frozenset[int]:
    values = {c.name: c.value for c in legend} if legend else {}
    chosen = set()
    for text in map(str, names):
        value = values.get(text, int(text) if text.isdecimal() else None)
        if value is None or (values and value not in values.values()):
            raise _no_class(f"class {text!r}", values)
        chosen.add(value)
    return frozenset(chosen)


def _no_class(what: str, values: dict[str, int]) -> UsageError:
    has = ", ".join(f"{name} ({value})" for name, value in values.items())
    return UsageError(
        f"the mask has no {what}; it has {has or 'no class names'}",
        code="CF-033",
        title="No such class",
        fix="use one of these names or numbers" if values else "use numbers",
    )


def cleaning_of(settings: SegmentSettings, legend: Legend | None) -> dict[str, Any]:
    """What settings say about small and jagged polygons, as options of `polygonize`.

    Raises:
        UsageError: CF-033, a class to regularize that the mask does not have.
    """
    tolerance = None if settings.simplify is None else vector.Tolerance(*settings.simplify)
    sizes = {"min_area": settings.min_area, "fill_holes": settings.fill_holes}
    regularize = None
    if settings.regularize:
        regularize = vector.Regularization(_class_values(legend, settings.regularize), settings.min_iou)
    return {
        **{f"{name}_{size[1]}": size[0] for name, size in sizes.items() if size is not None},
        "sieve": settings.sieve,
        "smooth": settings.smooth,
        "simplify": tolerance,
        "regularize": regularize,
        "connectivity": settings.connectivity,
    }


def _paths(mask: str | Path | Sequence[str | Path]) -> list[str | Path]:
    paths = [mask] if isinstance(mask, str | Path) else list(mask)
    if not paths:
        raise UsageError(
            "got no mask, expected one or more", code="CF-035", title="No mask", fix="give the path of a GeoTIFF"
        )
    return paths


def say_regularized(outcome: Outcome, min_iou: float) -> str:
    """How many polygons have straight walls, in words."""
    text = f"{outcome.straight} of {outcome.straight + outcome.kept} polygons have straight walls"
    if outcome.iou_min is not None:
        text += f" (intersection over union {outcome.iou_min:.2f} or more, median {outcome.iou_median:.2f})"
    return text + (f"; {outcome.kept} keep their outlines (min_iou {min_iou:g})" if outcome.kept else "")


def _polygons(
    masks: list[Path],
    only: Sequence[str | int] | None,
    cleaning: Cleaning,
    *,
    probabilities: str | Path | None = None,
    scratch: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    hands: Hands | None = None,
) -> PolygonSet:
    unknown = cleaning.keys() - Cleaning.__annotations__
    if unknown:
        msg = f"unexpected keyword arguments {sorted(unknown)}"
        raise TypeError(msg)
    settings = make_settings(cleaning)  # read as `segment` reads them
    legend = _common_legend(masks)
    polygons = vector.polygonize(
        masks,
        scratch=scratch or Path(tempfile.gettempdir()),
        include=classes_to_polygonize(legend, only),
        names=legend.names() if legend else None,
        bands_are_classes=legend is not None and legend.multilabel,
        **cleaning_of(settings, legend),
        probabilities=None if probabilities is None else Path(probabilities),
        progress=progress,
        hands=hands,
    )
    polygons.colors = legend.colors() if legend else {}
    return polygons


def _common_legend(masks: list[Path]) -> Legend | None:
    """Classes that all masks have; None where none has names.

    Raises:
        InputError: IN-034, they do not agree; or as `_checked_legend`.
    """
    first, *others = [_checked_legend(mask) for mask in masks]
    for mask, legend in zip(masks[1:], others, strict=True):
        if _meaning(legend) != _meaning(first):
            raise InputError(
                f"{mask} has {_in_words(legend)}, {masks[0]} has {_in_words(first)}; expected the same classes",
                code="IN-034",
                title="Masks do not have the same classes",
                where=str(mask),
                fix="give masks of one model, or vectorize them one by one",
            )
    return first


def _meaning(legend: Legend | None) -> object:
    """A legend without its colours."""
    return legend and (legend.multilabel, [(c.value, c.name, c.background) for c in legend])


def _in_words(legend: Legend | None) -> str:
    if legend is None:
        return "no class names"
    names = ", ".join(f"{c.name} ({c.value}{', background' if c.background else ''})" for c in legend)
    return shorten(f"the {'overlapping ' if legend.multilabel else ''}classes {names}", 200, placeholder=" …")


def _checked_legend(mask: Path) -> Legend | None:
    """Classes of a mask; None where it has no names.

    Raises:
        InputError: IN-001 no such file, IN-003 empty, IN-002 or IN-014 no raster, IN-031 not a readable GeoTIFF.
    """
    try:
        head, _, _ = read_ends(mask)
        if not head:
            raise _unusable(mask, f"{mask.name} has 0 bytes", code="IN-003", fix="write it again")
        driver = driver_of(head, mask)
        if driver != "GTiff":
            raise _unusable(mask, f"{mask.name} is {driver}, expected a GeoTIFF", fix="gdal_translate -of GTiff")
        return read_legend(mask)
    except FileNotFoundError as error:
        raise _unusable(mask, f"there is no file {mask}", code="IN-001", fix="check the path") from error
    except (OSError, ValueError, RasterioError) as error:
        if isinstance(error, InputError):
            raise
        raise _unusable(mask, f"{mask.name} cannot be read: {error}") from error


def _unusable(mask: Path, what: str, *, code: str = "IN-031", fix: str = "give a GeoTIFF with one band") -> InputError:
    return InputError(what, code=code, title="Mask cannot be used", where=str(mask), fix=fix)
