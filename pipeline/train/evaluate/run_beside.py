"""What a run has left beside its mask: where seams are, and probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.grid import Tiling
from pipeline.store import read_json

if TYPE_CHECKING:
    from pathlib import Path

RUN_FILE = "run.json"
PROBABILITIES = "probabilities.tif"


def tiling_beside(mask: Path, shape: tuple[int, int]) -> Tiling | None:
    """The frozen plan's tiling from the run.json beside a mask; None where there is none that describes it."""
    run: dict[str, Any] | None = read_json(mask.parent / RUN_FILE)
    if run is None or not isinstance(run.get("files"), dict) or mask.name not in run["files"]:
        return None
    try:
        tiling = Tiling.from_json(run["frozen_plan"]["tiling"])
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return tiling if tiling.shape == shape else None


def probabilities_beside(mask: Path) -> Path | None:
    """The probabilities that the run.json beside a mask tells of."""
    run: dict[str, Any] | None = read_json(mask.parent / RUN_FILE)
    files = run.get("files") if run else None
    path = mask.parent / PROBABILITIES
    known = isinstance(files, dict) and mask.name in files and PROBABILITIES in files
    return path if known and path.exists() else None
