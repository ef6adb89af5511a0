"""From two files to an evaluation: what they are is found out here, and one pass over both measures everything."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyproj

from pipeline import __version__
from pipeline.errors import InputError, UsageError
from pipeline.scene.magic import driver_of
from pipeline.train.evaluate import faults
from pipeline.train.evaluate.bootstrap import bootstrap, check_blocks
from pipeline.train.evaluate.boundary import BoundaryCounter, disk
from pipeline.train.evaluate.calibration import CalibrationCounter, open_probabilities
from pipeline.train.evaluate.classes import (
    MOST_CLASSES,
    Classes,
    Recode,
    chosen,
    classes_of_legend,
    classes_of_values,
    mismatch,
    parse_classes,
    parse_recode,
    said,
)
from pipeline.train.evaluate.counting import ConfusionCounter, ErrorMap
from pipeline.train.evaluate.evaluation import (
    SCHEMA,
    Evaluation,
    boundary_report,
    object_report,
    pixel_scores,
    seam_report,
)
from pipeline.train.evaluate.objects import ObjectCounter
from pipeline.train.evaluate.pairs import WINDOW_PX, Counter, count
from pipeline.train.evaluate.polygons import PolygonTruth, outside_polygons, the_only_class
from pipeline.train.evaluate.rasters import ClassRaster, Coded, head_of, open_pred, open_truth
from pipeline.train.evaluate.run_beside import probabilities_beside, tiling_beside
from pipeline.train.evaluate.sample import find_strata, read_units, tally
from pipeline.train.evaluate.sample_report import report_sample
from pipeline.train.evaluate.sizes import Distance, parse_distance
from pipeline.train.evaluate.vectors import VectorFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.grid import GeoBox, Window
    from pipeline.train.evaluate.rasters import Source

    Progress = Callable[[int, int], None]

_MOST_TOLERANCE_PX = 64
_MOST_BLOCK_PX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What is compared, and what is measured beside the confusion matrix."""

    classes: str | Sequence[str] | Mapping[int, str] | None = None
    """PRED's classes, where it does not name them or fewer are wanted: `clear,cloud`, `1=clear,2=cloud`."""
    recode: str | Mapping[str | int, str | int] | None = None
    """TRUTH's classes in PRED's: `4=cloud,9=ignore,*=clear`."""
    ignore: str | Sequence[str | int] = ()
    """Classes of TRUTH that are left out."""
    attribute: str | None = None
    """Of polygons and samples: holds names or numbers of classes."""
    layer: str | None = None
    """Of a vector file with several."""
    outside: str | int | None = None
    """Class of pixels that no polygon covers, or `ignore`; PRED's background if not given."""
    sample: bool = False
    """Whether TRUTH is a sample."""
    stratum: str | None = None
    """Attribute of a sample that holds the stratum; what PRED or `strata` has there if not given."""
    strata: str | Path | None = None
    """Raster of the strata, where they are not PRED's classes."""
    boundary: str | float | None = None
    """Tolerance of boundary scores: `2 px`, `5 m`."""
    objects: str | Sequence[str | int] = ()
    """Classes whose connected regions are matched."""
    seam_px: int = 16
    """Pixels this near to a border between patch cores are on a seam; 0 not to look."""
    probabilities: str | Path | None = "auto"
    """`auto`: those of PRED's run, if kept; `none` or None: no calibration."""
    bootstrap: int = 0
    """Draws of blocks for intervals."""
    block: str | float | None = None
    """Side of a block: `512 px`, `1000 m`."""
    seed: int = 0
    """Of the bootstrap."""


def evaluate(
    pred: str | Path,
    truth: str | Path,
    *,
    window_px: int = WINDOW_PX,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Compare a mask with the truth, window by window, in bounded memory.

    Args:
        pred: The `mask.tif` of a run, or any raster of class numbers.
        truth: A raster of class numbers on any grid, polygons, or a sample of points or polygons.
        window_px: Side of what is read at a time; no result depends on it.
        progress: Called with (windows done, windows in all).
        options: Fields of `EvaluateOptions`.

    Raises:
        InputError: A file cannot be read, or they cannot be compared.
        UsageError: An option is wrong or missing.
    """
    given = EvaluateOptions(**options)
    with ExitStack() as stack:
        mask = stack.enter_context(open_pred(Path(pred)))
        path = Path(truth)
        if given.sample:
            return _evaluate_sample(stack, mask, path, given, progress)
        classes = _classes(mask, given)
        recode = parse_recode(given.recode, given.ignore, classes)
        truth_facts, source, notes = _truth(stack, mask, path, classes, recode, given)
        made = _Measures(stack, mask, classes, given)
        shape = mask.geobox.shape
        coded = _coded_pred(mask, classes)
        count(coded, source, shape, made.counters, none=classes.none, window_px=window_px, progress=progress)
        if isinstance(source, PolygonTruth):
            source.require_any()
        made.require_any(mask, path)
        return _document(mask, truth_facts, classes, given, notes, made)


class _Measures:
    """The counters that options ask for."""

    def __init__(self, stack: ExitStack, mask: ClassRaster, classes: Classes, given: EvaluateOptions) -> None:
        geobox, num = mask.geobox, len(classes)
        self.notes: list[str] = []
        self.block = _block(given, geobox)
        tiling = tiling_beside(mask.path, geobox.shape) if given.seam_px > 0 else None
        self.has_seams = tiling is not None
        block_px = None if self.block is None else round(self.block.px)
        blocks = (1, 1) if block_px is None else check_blocks(geobox.shape, block_px, num)
        self.confusion = ConfusionCounter(num, tiling=tiling, seam_px=given.seam_px, blocks=blocks, block_px=block_px)
        self.errors = ErrorMap(geobox.shape)
        self.counters: list[Counter] = [self.confusion, self.errors]
        self.tolerance: Distance | None = None
        self.boundary: BoundaryCounter | None = None
        if given.boundary is not None:
            self.tolerance = parse_distance(given.boundary, geobox, option="--boundary", most_px=_MOST_TOLERANCE_PX)
            self.boundary = BoundaryCounter(num, disk(self.tolerance.value, self.tolerance.pixel_hw))
            self.counters.append(self.boundary)
        self.objects = {i: ObjectCounter(i, geobox.width) for i in chosen(given.objects, classes, option="--objects")}
        self.counters += self.objects.values()
        self.calibration = self._calibration(stack, mask, classes, given)
        if self.calibration is not None:
            self.counters.append(self.calibration)

    def _calibration(
        self, stack: ExitStack, mask: ClassRaster, classes: Classes, given: EvaluateOptions
    ) -> CalibrationCounter | None:
        if given.probabilities in {None, "none"}:
            return None
        automatic = given.probabilities == "auto"
        path = probabilities_beside(mask.path) if automatic else Path(str(given.probabilities))
        if path is None:
            return None
        try:
            return CalibrationCounter(stack.enter_context(open_probabilities(path, mask, classes)), classes)
        except InputError as error:
            if not automatic:
                raise
            self.notes.append(f"no calibration: {error.what}")
            return None

    def require_any(self, mask: ClassRaster, truth: Path) -> None:
        """Refuse an empty comparison.

        Raises:
            InputError: EV-008.
        """
        if not self.confusion.counts.any():
            pred, other, both = self.confusion.left_out.tolist()
            raise InputError(
                f"no pixel has a class on both sides: {pred + both} have none in PRED, {other + both} none in TRUTH",
                code="EV-008",
                title="Nothing to compare",
                where=f"{mask.path}, {truth}",
                fix="compare both on a map; look at nodata, --ignore and --recode",
            )


def _classes(mask: ClassRaster, given: EvaluateOptions) -> Classes:
    if given.classes is not None:
        found = parse_classes(given.classes)
    elif mask.legend is not None:
        found = classes_of_legend(mask.legend)
    else:
        found = classes_of_values(v for v in mask.distinct() if v >= 0)
    if not len(found):
        raise InputError(
            "PRED has no pixel with a class",
            code="EV-008",
            title="Nothing to compare",
            where=str(mask.path),
            fix="look at its nodata value",
        )
    if len(found) > MOST_CLASSES:
        raise UsageError(
            f"PRED has {len(found)} classes; expected at most {MOST_CLASSES}",
            code="EV-012",
            title="Too many counts",
            fix="name those that count: --classes",
        )
    return found


def _coded_pred(mask: ClassRaster, classes: Classes) -> Coded:
    def refuse(numbers: list[int], window: Window) -> InputError:
        return InputError(
            f"PRED has the numbers {numbers[:20]}; its classes are {classes}",
            code="EV-005",
            title="Classes of PRED and TRUTH do not match",
            where=f"{mask.path}, {window}",
            fix='name all of them: --classes "0=clear,1=cloud"',
        )

    return Coded(mask, classes.table(), classes.none, refuse)


def _truth(
    stack: ExitStack, mask: ClassRaster, path: Path, classes: Classes, recode: Recode, given: EvaluateOptions
) -> tuple[dict[str, Any], Source, list[str]]:
    """What TRUTH is, its indices, and notes."""
    if _is_raster(path):
        raster = stack.enter_context(open_truth(path, mask))
        notes = ["TRUTH has another grid: each pixel of PRED takes what lies under its centre"] if raster.warped else []
        return (
            {"path": str(path), "kind": "raster", "warped": raster.warped},
            _coded_truth(raster, recode, given),
            notes,
        )
    file = VectorFile(path, mask.geobox, layer=given.layer)
    if given.attribute is not None:
        file.check_field(given.attribute, "--attribute")
    only = the_only_class(classes, file) if given.attribute is None else classes.none
    outside = outside_polygons(given.outside, classes)
    source = PolygonTruth(file, mask.geobox.shape, recode, attribute=given.attribute, outside=outside, only=only)
    name = "left out" if outside == classes.none else classes.names[outside]
    facts = {"path": str(path), "kind": "polygons", "layer": file.layer, "attribute": given.attribute, "outside": name}
    polygons = f"; polygons are {classes.names[only]}" if given.attribute is None else ""
    return facts, source, [f"pixels outside all polygons: {name}{polygons}"]


def _coded_truth(raster: ClassRaster, recode: Recode, given: EvaluateOptions) -> Coded:
    classes = recode.classes
    named = raster.legend is not None and classes.names != tuple(map(str, classes.values))
    names = raster.legend.names() if named and raster.legend is not None else None
    if names is not None and not given.recode and not given.ignore and set(names.values()) != set(classes.names):
        raise mismatch(f"the classes {said(names)}", classes, str(raster.path))

    def refuse(numbers: list[int], window: Window) -> InputError:
        found = said({n: (names or {}).get(n, str(n)) for n in numbers})
        return mismatch(f"the numbers {found} that are no classes", classes, f"{raster.path}, {window}")

    return Coded(raster, recode.table(names), classes.none, refuse)


def _is_raster(path: Path) -> bool:
    """Whether a file is a raster that is opened, or one of those that are refused; else it may hold polygons."""
    if path.is_dir():  # such as a file geodatabase
        return False
    head = head_of(path)
    try:
        driver_of(head, path)
    except InputError as error:
        if error.code == "IN-014" and head.lstrip().startswith((b"<VRT", b"<GDAL")):
            raise
        return False
    return True


def _block(given: EvaluateOptions, geobox: GeoBox) -> Distance | None:
    if not given.bootstrap:
        return None
    if given.block is None:
        raise faults.unclear(
            "--bootstrap draws whole blocks, since neighbouring pixels err together; their size is not given",
            fix="a side longer than errors hang together: --block-m 1000 or --block-px 512",
        )
    return parse_distance(given.block, geobox, option="block", most_px=_MOST_BLOCK_PX)


def _document(
    mask: ClassRaster,
    truth: dict[str, Any],
    classes: Classes,
    given: EvaluateOptions,
    notes: list[str],
    made: _Measures,
) -> Evaluation:
    counts = made.confusion.counts
    overall, rows = pixel_scores(counts, classes)
    pred_alone, truth_alone, both = made.confusion.left_out.tolist()
    height, width = mask.geobox.shape
    intervals = None
    notes = [*notes, *made.notes]
    if made.block is not None:
        intervals, more = bootstrap(
            made.confusion.blocks, classes, draws=given.bootstrap, block_px=round(made.block.px), seed=given.seed
        )
        notes += more
    seams = seam_report(made.confusion.seam, counts, classes, within_px=given.seam_px) if made.has_seams else None
    document = {
        **_head(mask, truth, classes),
        "pixels": {
            "total": height * width,
            "compared": int(counts.sum()),
            "left_out": {"pred": pred_alone, "truth": truth_alone, "both": both},
        },
        "confusion": {"rows": "truth", "columns": "pred", "counts": counts.tolist()},
        "overall": overall,
        "per_class": rows,
        "seams": seams,
        "boundary": made.boundary and made.tolerance and boundary_report(made.boundary, classes, made.tolerance),
        "objects": [object_report(counter, classes, index) for index, counter in made.objects.items()],
        "calibration": made.calibration and made.calibration.report(),
        "bootstrap": intervals,
        "sample": None,
        "notes": notes,
    }
    return Evaluation(document, made.errors)


def _head(mask: ClassRaster, truth: dict[str, Any], classes: Classes) -> dict[str, Any]:
    height, width = mask.geobox.shape
    return {
        "schema": SCHEMA,
        "scenemask": __version__,
        "pred": {"path": str(mask.path), "height": height, "width": width, "crs": _crs_name(mask.geobox)},
        "truth": truth,
        "classes": [{"value": v, "name": n} for v, n in zip(classes.values, classes.names, strict=True)],
    }


def _crs_name(geobox: GeoBox) -> str | None:
    if geobox.crs_wkt is None:
        return None
    crs = pyproj.CRS.from_wkt(geobox.crs_wkt)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.name)


def _evaluate_sample(
    stack: ExitStack, mask: ClassRaster, path: Path, given: EvaluateOptions, progress: Progress | None
) -> Evaluation:
    _refuse_for_sample(given)
    classes = _classes(mask, given)
    recode = parse_recode(given.recode, given.ignore, classes)
    file = VectorFile(path, mask.geobox, layer=given.layer)
    assert given.attribute is not None
    file.check_field(given.attribute, "--attribute")
    if given.stratum is not None:
        file.check_field(given.stratum, "--stratum")
    strata_raster = None if given.strata is None else stack.enter_context(open_truth(Path(given.strata), mask))
    units = read_units(file, recode, given.attribute, given.stratum)
    shape = mask.geobox.shape
    found = tally(_coded_pred(mask, classes), shape, units, classes, strata=strata_raster, progress=progress)
    strata = find_strata(units, found, classes, strata=strata_raster, where=str(path))
    report, notes = report_sample(
        units, found, strata, classes, total=file.count, pixel_m2=_pixel_m2(mask.geobox), where=str(path)
    )
    truth = {"path": str(path), "kind": "sample", "layer": file.layer, "attribute": given.attribute,
             "stratum": given.stratum, "strata": None if given.strata is None else str(given.strata)}  # fmt: skip
    total = shape[0] * shape[1]
    pixels = {"total": total, "compared": None, "left_out": {"pred": total - int(found.class_px.sum())}}
    nothing = dict.fromkeys(("confusion", "overall", "per_class", "seams", "boundary", "calibration", "bootstrap"))
    head = _head(mask, truth, classes)
    return Evaluation({**head, "pixels": pixels, **nothing, "objects": [], "sample": report, "notes": notes})


def _refuse_for_sample(given: EvaluateOptions) -> None:
    """A sample gives estimates and nothing else.

    Raises:
        UsageError: EV-006.
    """
    if given.attribute is None:
        raise faults.unclear("a sample needs the attribute that holds the reference class", fix="--attribute NAME")
    asked = {"--boundary": given.boundary, "--objects": given.objects, "--bootstrap": given.bootstrap}
    asked["--outside"] = given.outside
    wrong = [name for name, value in asked.items() if value]
    if wrong:
        raise faults.unclear(
            f"{', '.join(wrong)} need a TRUTH that covers PRED, and it was declared a sample", fix="leave them out"
        )


def _pixel_m2(geobox: GeoBox) -> float | None:
    """Area of a pixel in the CRS, m2; None where the CRS is not projected."""
    crs = None if geobox.crs_wkt is None else pyproj.CRS.from_wkt(geobox.crs_wkt)
    if crs is None or not crs.is_projected:
        return None
    unit = crs.axis_info[0].unit_conversion_factor
    return float(geobox.pixel_area * unit**2)
