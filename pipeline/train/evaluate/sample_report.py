"""What a sample says, as the report has it; strata with one unit or none are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InputError
from pipeline.train.evaluate.area import Z, estimate
from pipeline.train.evaluate.jsonable import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.train.evaluate.area import Estimate
    from pipeline.train.evaluate.classes import Classes
    from pipeline.train.evaluate.sample import Strata, Tally, Units


def report_sample(
    units: Units, found: Tally, strata: Strata, classes: Classes, *, total: int, pixel_m2: float | None, where: str
) -> tuple[dict[str, Any], list[str]]:
    """Estimates for the report, and notes.

    Args:
        units: The sample on PRED.
        found: What lies under it.
        strata: Of the design.
        classes: Of PRED.
        total: Units in the file.
        pixel_m2: Area of a pixel in PRED's CRS; None where it is not one number.
        where: The file, for messages.

    Raises:
        InputError: EV-008, no unit can be used.
    """
    mapped = found.mapped != classes.none
    known = units.reference != classes.none
    used = mapped & known & (strata.of_unit >= 0)
    if not used.any():
        raise InputError(
            f"none of {total} units lies on PRED with a class on both sides",
            code="EV-008",
            title="Nothing to compare",
            where=where,
            fix="compare both on a map; is the file's CRS what its coordinates are in?",
        )
    counts = np.zeros((len(strata.names), len(classes), len(classes)), np.int64)
    np.add.at(counts, (strata.of_unit[used], found.mapped[used], units.reference[used]), 1)
    num = counts.sum(axis=(1, 2))
    sampled = (num > 0) & (strata.sizes_px > 0)
    made = estimate(counts[sampled], strata.sizes_px[sampled])
    covered_px = int(strata.sizes_px[sampled].sum())
    report = {
        "unit": units.kind,
        "strata_are": strata.what,
        "units": {
            "total": total,
            "used": int(used.sum()),
            "not_on_pred": total - int(mapped.sum()),
            "without_class": int((mapped & ~known).sum()),
            "without_stratum": int((mapped & known & (strata.of_unit < 0)).sum()),
        },
        "strata": [
            {"name": name, "pixels": int(size), "weight": size / max(covered_px, 1) if ok else None, "units": int(n)}
            for name, size, n, ok in zip(strata.names, strata.sizes_px.tolist(), num, sampled, strict=True)
        ],
        "covered_px": covered_px,
        "covered_frac": covered_px / int(strata.sizes_px.sum()),
        "counts": {"rows": "pred", "columns": "truth", "units": counts.sum(axis=0)},
        "area_shares": {"rows": "pred", "columns": "truth", "shares": made.matrix},
        "overall_accuracy": _estimate(made.overall),
        "per_class": [
            {
                "value": value,
                "name": name,
                "mapped_px": int(found.class_px[i]),
                "users_accuracy": _estimate(made.users, i),
                "producers_accuracy": _estimate(made.producers, i),
                "area_share": _estimate(made.area, i),
                "area_px": _estimate(made.area, i, times=covered_px),
                "area_m2": None if pixel_m2 is None else _estimate(made.area, i, times=covered_px * pixel_m2),
            }
            for i, (value, name) in enumerate(zip(classes.values, classes.names, strict=True))
        ],
    }
    return plain(report), _notes(units, found, strata, num, used)


def _estimate(of: Estimate, index: int | None = None, *, times: float = 1.0) -> dict[str, Any]:
    value, error = (float(x if index is None else x[index]) * times for x in (of.value, of.error))
    return {"value": value, "se": error, "low": value - Z * error, "high": value + Z * error}


def _notes(units: Units, found: Tally, strata: Strata, num: NDArray[np.int64], used: NDArray[np.bool_]) -> list[str]:
    notes = []
    empty = [n for n, c, size in zip(strata.names, num, strata.sizes_px, strict=True) if not c and size]
    if empty:
        part = strata.sizes_px[(num == 0)].sum() / strata.sizes_px.sum()
        notes.append(
            f"no unit in the strata {', '.join(empty)} ({part:.2%} of PRED): estimates hold for the rest of PRED only"
        )
    single = [n for n, c in zip(strata.names, num, strict=True) if c == 1]
    if single:
        notes.append(
            f"one unit in the strata {', '.join(single)}: no variance can be seen there, so no interval is given"
        )
    if units.stratum is not None and strata.what == "classes of PRED":
        moved = int((used & (strata.of_unit != found.mapped.astype(np.int64))).sum())
        if moved:
            notes.append(
                f"{moved} units lie on another class of PRED than their stratum: is it the map they were drawn from?"
            )
    return notes
