"""The result of an evaluation, and its report.json: a JSON document of a fixed, numbered form (docs/evaluation.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.train.evaluate.jsonable import plain
from pipeline.train.metrics import class_scores, mean_over_present, overall_accuracy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.train.evaluate.boundary import BoundaryCounter
    from pipeline.train.evaluate.classes import Classes
    from pipeline.train.evaluate.counting import ErrorMap
    from pipeline.train.evaluate.objects import ObjectCounter
    from pipeline.train.evaluate.sizes import Distance

SCHEMA = "scenemask-evaluation/1"
"""Name and version of the document: fields may be added, a changed meaning gets another number."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How well a mask agrees with the truth."""

    document: Mapping[str, Any]
    """All numbers, as report.json has them."""
    errors: ErrorMap | None = None
    """Where the errors are; None for a sample."""

    def to_dict(self) -> dict[str, Any]:
        """The document: plain values, None for what cannot be told."""
        document: dict[str, Any] = plain(dict(self.document))
        return document

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the confusion matrix."""
        return tuple(row["name"] for row in self.document["classes"])

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """`(target class, mask class)`, pixels; None for a sample."""
        found = self.document["confusion"]
        return None if found is None else np.array(found["counts"], np.int64)

    @property
    def overall_accuracy(self) -> float | None:
        """Share of compared pixels that are right; estimated where TRUTH is a sample."""
        if self.document["sample"] is not None:
            return self.document["sample"]["overall_accuracy"]["value"]  # type: ignore[no-any-return]
        return self.document["overall"]["accuracy"]  # type: ignore[no-any-return]

    @property
    def mean_iou(self) -> float | None:
        """Over the classes that either side has; None for a sample."""
        overall = self.document["overall"]
        return None if overall is None else overall["mean_iou"]

    @property
    def iou(self) -> dict[str, float | None]:
        """Of each class by name, None for a class that neither side has; empty for a sample."""
        return {row["name"]: row["iou"] for row in self.document["per_class"] or ()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers must know."""
        return tuple(self.document["notes"])


def pixel_scores(counts: NDArray[np.int64], classes: Classes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Overall scores, and those of each class, from a confusion matrix."""
    of = class_scores(counts)
    overall = {
        "pixels": int(counts.sum()),
        "accuracy": overall_accuracy(counts),
        "mean_iou": mean_over_present(of.iou),
        "mean_f1": mean_over_present(of.f1),
        "classes_present": int((~np.isnan(of.iou)).sum()),
    }
    rows = [
        {
            "value": value,
            "name": name,
            "truth_px": int(counts[i].sum()),
            "pred_px": int(counts[:, i].sum()),
            "iou": of.iou[i],
            "f1": of.f1[i],
            "precision": of.precision[i],
            "recall": of.recall[i],
        }
        for i, (value, name) in enumerate(zip(classes.values, classes.names, strict=True))
    ]
    return plain(overall), plain(rows)


def seam_report(
    seam: NDArray[np.int64], whole: NDArray[np.int64], classes: Classes, *, within_px: int
) -> dict[str, Any]:
    """The same scores on seam pixels and on all others."""
    report: dict[str, Any] = {"within_px": within_px}
    for name, counts in (("seam", seam), ("elsewhere", whole - seam)):
        overall, rows = pixel_scores(counts, classes)
        report[name] = {"overall": overall, "per_class": rows}
    return report


def boundary_report(counter: BoundaryCounter, classes: Classes, tolerance: Distance) -> dict[str, Any]:
    """Boundary scores of each class and their means over classes that have a boundary."""
    iou = counter.iou()
    f1, precision, recall = counter.scores()
    of_pred, of_truth = counter.contour_px()
    rows = [
        {
            "value": value,
            "name": name,
            "iou": iou[i],
            "f1": f1[i],
            "precision": precision[i],
            "recall": recall[i],
            "pred_contour_px": int(of_pred[i]),
            "truth_contour_px": int(of_truth[i]),
        }
        for i, (value, name) in enumerate(zip(classes.values, classes.names, strict=True))
    ]
    report: dict[str, Any] = plain({
        "tolerance": str(tolerance),
        "tolerance_px": tolerance.px,
        "mean_iou": mean_over_present(iou),
        "mean_f1": mean_over_present(f1),
        "per_class": rows,
    })  # fmt: skip
    return report


def object_report(counter: ObjectCounter, classes: Classes, index: int) -> dict[str, Any]:
    """Objects of one class."""
    of = counter.scores()
    report: dict[str, Any] = plain({
        "value": classes.values[index],
        "name": classes.names[index],
        "min_iou": 0.5,
        "pred": of.pred,
        "truth": of.truth,
        "matched": of.matched,
        "precision": of.precision,
        "recall": of.recall,
        "f1": of.f1,
        "mean_iou_of_matched": of.mean_iou,
    })  # fmt: skip
    return report
