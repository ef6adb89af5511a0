"""Plots of an evaluation as PNG: confusion matrix, reliability diagram, map of errors."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

_DPI = 120
_MOST_NAMED = 30
"""Classes with names and numbers in the matrix; more would not be legible."""
_LONGEST = 24


class Errors(Protocol):
    """Where a mask is wrong, on a coarse lattice."""

    cell_px: int
    wrong: NDArray[np.int64]
    compared: NDArray[np.int64]


def plot_evaluation(document: Mapping[str, Any], errors: Errors | None) -> Iterator[tuple[str, bytes]]:
    """File names and PNG bytes.

    Args:
        document: As in report.json.
        errors: Where the errors are; None for no map.
    """
    names = [row["name"] for row in document["classes"]]
    if document["confusion"] is not None:
        counts = np.array(document["confusion"]["counts"], np.float64)
        yield "confusion.png", _png(_matrix(counts, names, rows="truth", columns="pred", unit="share of the truth"))
    if document["sample"] is not None:
        shares = np.array(document["sample"]["area_shares"]["shares"], np.float64).T
        yield "confusion.png", _png(_matrix(shares, names, rows="truth", columns="pred", unit="share of the truth"))
    if document["calibration"] is not None:
        yield "reliability.png", _png(_reliability(document["calibration"]))
    if errors is not None:
        yield "errors.png", _png(_error_map(errors))


def _matrix(counts: NDArray[np.float64], names: list[str], *, rows: str, columns: str, unit: str) -> Figure:
    """Rows sum to one, so that rare classes are seen too."""
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    count = len(names)
    side = 2.5 + 0.55 * min(count, _MOST_NAMED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot(title=f"Confusion matrix, {unit}", xlabel=columns, ylabel=rows)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, shrink=0.8)
    if count <= _MOST_NAMED:
        shown = [_short(name) for name in names]
        axes.set_xticks(range(count), shown, rotation=45, ha="right")
        axes.set_yticks(range(count), shown)
        for (row, column), value in np.ndenumerate(share):
            if np.isfinite(value):
                ink = "white" if value > 0.5 else "black"  # noqa: PLR2004 - half of the colour scale
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=ink, fontsize=7)
    return figure


def _reliability(calibration: Mapping[str, Any]) -> Figure:
    """Share right over mean probability, and pixels by probability below."""
    figure = Figure(figsize=(6, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
    top = calibration["top"]
    curves = [("class of PRED", top, 2.0), *((_short(c["name"]), c, 1.0) for c in calibration["per_class"][:8])]
    for name, table, width in curves:
        points = [(b["mean_probability"], b["share_right"]) for b in table["table"] if b["pixels"]]
        if points:
            label = name if table["ece"] is None else f"{name}, ECE {table['ece']:.3f}"
            upper.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, label=label)
    upper.set(title="Reliability", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    upper.legend(fontsize=8)
    bins = top["table"]
    lower.bar([b["from"] for b in bins], [b["pixels"] for b in bins], width=1 / len(bins), align="edge")
    lower.set(xlabel="probability of PRED's class", ylabel="pixels")
    return figure


def _error_map(errors: Errors) -> Figure:
    """Share of wrong pixels; grey where nothing was compared."""
    nothing = np.full(errors.wrong.shape, np.nan)
    share = np.divide(errors.wrong, errors.compared, out=nothing, where=errors.compared > 0)
    height, width = share.shape
    longest = max(height, width)
    figure = Figure(figsize=(8 * width / longest + 1.5, max(8 * height / longest, 2) + 0.8), layout="constrained")
    axes = figure.add_subplot(title=f"Share of wrong pixels, cells of {errors.cell_px} px", xticks=[], yticks=[])
    axes.set_facecolor("lightgrey")
    picture = axes.imshow(share, cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return figure


def _short(name: str) -> str:
    """A name as a label; `$` would start a formula."""
    cut = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return "".join(c if c.isprintable() else "?" for c in cut).replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=_DPI, format="png", metadata={"Software": None})
    return buffer.getvalue()
