"""An evaluation for people: one table, and a line for each further measure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Column, Table

from pipeline.cli.show import Console

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.train.evaluate import Evaluation


def show_evaluation(found: Evaluation, written: list[Path]) -> None:
    """Scores of each class, overall scores, notes, and where to look."""
    console = Console(highlight=False)
    document = found.to_dict()
    if document["sample"] is None:
        _show_pixels(console, document)
    else:
        _show_sample(console, document["sample"])
    for note in document["notes"]:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    for path in written:
        console.print(f"  {escape(str(path))}", soft_wrap=True)


def _show_pixels(console: Console, document: dict[str, Any]) -> None:
    boundary = document["boundary"]
    table = Table("class", *(_right(n) for n in ("of truth", "IoU", "F1", "precision", "recall")), box=box.SIMPLE)
    if boundary is not None:
        table.add_column("edge IoU", justify="right")
        table.add_column("edge F1", justify="right")
    for i, row in enumerate(document["per_class"]):
        edge = [] if boundary is None else [_of(boundary["per_class"][i][score]) for score in ("iou", "f1")]
        scores = [_of(row[score]) for score in ("iou", "f1", "precision", "recall")]
        table.add_row(escape(row["name"]), f"{row['truth_px'] / document['pixels']['compared']:.2%}", *scores, *edge)
    console.print(table)
    overall, pixels = document["overall"], document["pixels"]
    left_out = sum(pixels["left_out"].values())
    console.print(
        f"overall accuracy {_of(overall['accuracy'])}  mean IoU {_of(overall['mean_iou'])}  "
        f"mean F1 {_of(overall['mean_f1'])}  over {overall['classes_present']} classes present"
    )
    console.print(f"{pixels['compared']:,} px compared, {left_out:,} left out")
    for line in _further(document):
        console.print(line, soft_wrap=True)


def _further(document: dict[str, Any]) -> list[str]:
    """A line for each measure that was asked for."""
    lines = []
    if document["boundary"] is not None:
        edge = document["boundary"]
        means = f"mean boundary IoU {_of(edge['mean_iou'])}, F1 {_of(edge['mean_f1'])}"
        lines.append(f"{means} at {edge['tolerance']}")
    if document["seams"] is not None:
        seam, other = (document["seams"][part]["overall"] for part in ("seam", "elsewhere"))
        lines.append(
            f"within {document['seams']['within_px']} px of a seam: accuracy {_of(seam['accuracy'])}, "
            f"mean IoU {_of(seam['mean_iou'])}; elsewhere {_of(other['accuracy'])}, {_of(other['mean_iou'])}"
        )
    lines += [
        f"objects of {escape(of['name'])}: F1 {_of(of['f1'])}, precision {_of(of['precision'])}, recall "
        f"{_of(of['recall'])} ({of['matched']} matched of {of['pred']} in PRED, {of['truth']} in TRUTH)"
        for of in document["objects"]
    ]
    if document["calibration"] is not None:
        of = document["calibration"]
        lines.append(f"calibration error (ECE) {_of(of['top']['ece'])}, mean over classes {_of(of['classwise_ece'])}")
    if document["bootstrap"] is not None:
        of = document["bootstrap"]
        ends = {name: " - ".join(_of(end) for end in of["overall"][name]) for name in ("accuracy", "mean_iou")}
        lines.append(
            f"95 % of {of['draws']} draws of {of['blocks']} blocks: accuracy {ends['accuracy']}, mean IoU "
            f"{ends['mean_iou']}"
        )
    return lines


def _show_sample(console: Console, sample: dict[str, Any]) -> None:
    with_m2 = any(row["area_m2"] is not None for row in sample["per_class"])
    names = ("user's accuracy", "producer's accuracy", "share of area", "area, ha" if with_m2 else "area, px")
    table = Table("class", *(_right(n) for n in names), box=box.SIMPLE)
    for row in sample["per_class"]:
        area = row["area_m2"] if with_m2 else row["area_px"]
        shown = [_with_error(row[n]) for n in ("users_accuracy", "producers_accuracy", "area_share")]
        table.add_row(
            escape(row["name"]),
            *shown,
            _with_error(area, times=1e-4, digits=2) if with_m2 else _with_error(area, digits=0),
        )
    console.print(table)
    units = sample["units"]
    console.print(
        f"overall accuracy {_with_error(sample['overall_accuracy'])}; {units['used']} of {units['total']} units used, "
        f"strata: {escape(sample['strata_are'])}; ± is half of a 95 % interval",
        soft_wrap=True,
    )


def _with_error(of: dict[str, Any], *, times: float = 1.0, digits: int = 3) -> str:
    if of["value"] is None:
        return "-"
    error = "" if of["se"] is None else f" ± {(of['high'] - of['value']) * times:,.{digits}f}"
    return f"{of['value'] * times:,.{digits}f}{error}"


def _of(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _right(name: str) -> Column:
    return Column(name, justify="right")
