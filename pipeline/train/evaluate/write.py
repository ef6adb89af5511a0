"""report.json and plots on disk: the report whole or not at all, last."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import OutputError, UsageError
from pipeline.store import atomic_write_bytes, atomic_write_json
from pipeline.store.files import cannot_write

if TYPE_CHECKING:
    from pipeline.train.evaluate.evaluation import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where an evaluation is written."""

    report: Path | None = None
    """The JSON file; None to write none."""
    plots: str | Path | None = None
    """Folder of the plots; that of the report if not given, and `none` for no plots."""
    overwrite: bool = False
    """Replace a report that is there; plots are always replaced."""

    @property
    def plots_folder(self) -> Path | None:
        """None where no plots are made."""
        if self.plots == "none":
            return None
        if self.plots is not None:
            return Path(self.plots)
        drawable = importlib.util.find_spec("matplotlib") is not None
        return self.report.parent if self.report is not None and drawable else None

    def check(self) -> None:
        """Refuse what would fail after the work; touches nothing.

        Raises:
            OutputError: OU-030, the report exists.
            UsageError: EV-013, plots were asked for and Matplotlib is not installed.
        """
        if self.report is not None and self.report.exists() and not self.overwrite:
            raise OutputError(
                f"{self.report.name} exists",
                code="OU-030",
                title="Output exists",
                where=str(self.report),
                fix="choose another name, or allow overwriting (--overwrite)",
            )
        if self.plots not in {None, "none"} and importlib.util.find_spec("matplotlib") is None:
            raise UsageError(
                "plots were asked for, and Matplotlib is not installed",
                code="EV-013",
                title="Matplotlib is missing",
                fix='pip install "scenemask[train]", or --plots none',
            )


def write_evaluation(evaluation: Evaluation, place: Destination) -> list[Path]:
    """Write plots, then the report; what was written, in this order.

    Raises:
        UsageError: CF-002, the folder cannot be made or written.
        ResourceError: RS-001, no space.
    """
    written: list[Path] = []
    folder = place.plots_folder
    if folder is not None:
        from pipeline.report.evaluation_plots import plot_evaluation  # noqa: PLC0415 - Matplotlib takes a second

        for name, png in plot_evaluation(evaluation.to_dict(), evaluation.errors):
            _in_folder(folder)
            atomic_write_bytes(folder / name, png)
            written.append(folder / name)
    if place.report is not None:
        _in_folder(place.report.parent)
        atomic_write_json(place.report, evaluation.to_dict())
        written.append(place.report)
    return written


def _in_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error.strerror or str(error)) from error
