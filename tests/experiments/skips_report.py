"""The page and the plots of the experiment on skip connections, from its rows."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

METHODS = ("u-net", "no skips")
_TITLES = {
    "land-cover": "Synthetic land cover, five classes (means over classes)",
    "buildings": "Banepa, buildings and background (means over both)",
    "coast": "Synthetic coast, land and water (means over both)",
}
_COLORS = {"u-net": "C0", "no skips": "C1"}


def write_report(rows_path: Path, docs: Path) -> None:
    """Write the plots and replace the tables of `skip-connections.md`, leaving its own words."""
    with rows_path.open() as file:
        rows = list(csv.DictReader(file))
    page = docs / "skip-connections.md"
    text = (
        page.read_text() if page.exists() else "# What skip connections are worth with few labels\n\n<!-- tables -->\n"
    )
    head, marker, tail = text.partition("<!-- tables -->\n")
    _, end, rest = tail.partition("<!-- end of tables -->\n")
    parts = []
    for name, title in _TITLES.items():
        some = [row for row in rows if row["data"] == name]
        if some:
            _plot(docs / "images" / f"skips-{name}.png", some, title)
            parts.append(_section(name, title, some))
    page.write_text(head + marker + "\n" + "\n".join(parts) + "\n<!-- end of tables -->\n" + (rest if end else ""))


def _section(name: str, title: str, rows: list[dict[str, str]]) -> str:
    lines = [f"### {title}", "", f"![IoU and boundary F1 over the number of chips](images/skips-{name}.png)", ""]
    lines += [
        "| chips | U-Net IoU | no skips IoU | U-Net boundary F1 | no skips boundary F1 |",
        "|---|---|---|---|---|",
    ]
    table = _by_chips(rows)
    for chips in sorted({chips for _, chips in table}):
        cells = [_cell(table.get((method, chips), []), key) for key in ("mean_iou", "mean_bf1") for method in METHODS]
        lines.append(f"| {chips} | {' | '.join(cells)} |")
    others = [row for row in rows if row["method"] not in METHODS]
    if others:
        lines += ["", "| | IoU | boundary F1 |", "|---|---|---|"]
        for method in dict.fromkeys(row["method"] for row in others):
            some = [row for row in others if row["method"] == method]
            said = "NDWI > 0" if method == "ndwi" else f"U-Net, 64 chips, {method.removeprefix('without ')} shuffled"
            lines.append(f"| {said} | {_cell(some, 'mean_iou')} | {_cell(some, 'mean_bf1')} |")
    return "\n".join([*lines, ""])


def _by_chips(rows: list[dict[str, str]]) -> dict[tuple[str, int], list[dict[str, str]]]:
    table: dict[tuple[str, int], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["method"] in METHODS:
            table[row["method"], int(row["chips"])].append(row)
    return table


def _cell(rows: list[dict[str, str]], key: str) -> str:
    if not rows:
        return "–"
    values = [float(row[key]) for row in rows]
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _plot(path: Path, rows: list[dict[str, str]], title: str) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, 2)
    table = _by_chips(rows)
    for axis, key, label in zip(axes, ("mean_iou", "mean_bf1"), ("IoU", "boundary F1, 2 px"), strict=True):
        for method in METHODS:
            chips = sorted(chips for m, chips in table if m == method)
            values = [[float(row[key]) for row in table[method, n]] for n in chips]
            axis.plot(
                chips, [np.mean(v) for v in values], color=_COLORS[method], marker="o", markersize=3, label=method
            )
            low, high = [min(v) for v in values], [max(v) for v in values]
            axis.fill_between(chips, low, high, color=_COLORS[method], alpha=0.15, linewidth=0)
        for row in rows:
            if row["method"] == "ndwi":
                axis.axhline(float(row[key]), color="0.4", linestyle=":", label="NDWI > 0")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="labelled chips of 96 px", ylabel=label, ylim=(0, 1))
        axis.set_xticks(sorted({chips for _, chips in table}), [str(c) for c in sorted({c for _, c in table})])
    axes[0].legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
