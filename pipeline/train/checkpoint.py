"""Where training stands, on disk: whole or absent, the last two kept, never code.

A checkpoint holds weights, optimiser, step, the curve so far and the best weights. Chips and their changes are
functions of seed and step, so nothing else is needed: resuming equals not stopping.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import OutputError
from pipeline.store.files import atomic_write_bytes, read_json

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)\.pt")
SETTINGS_FILE = "settings.json"


@dataclass(slots=True)
class Progress:
    """How far training has come."""

    step: int = 0
    """Steps taken."""
    elapsed_s: float = 0.0
    """Time spent, over all starts."""
    losses: list[float] = field(default_factory=list)
    """Of each step."""
    rates: list[float] = field(default_factory=list)
    """Learning rate of each step."""
    checks: list[dict[str, Any]] = field(default_factory=list)
    """Looks at the validation part: step, mean_iou, iou."""
    best_step: int = 0
    """Step of the best weights; 0: none yet."""
    best_score: float = -1.0
    """Their mean IoU on the validation part."""
    skipped: int = 0
    """Steps whose loss was no number."""

    @property
    def checks_since_best(self) -> int:
        """Looks without a better one."""
        return sum(1 for check in self.checks if check["step"] > self.best_step)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    *,
    weights: dict[str, Tensor],
    optimiser: dict[str, Any],
    best: dict[str, Tensor] | None,
) -> None:
    """Write a checkpoint and drop all but the last two.

    Raises:
        ResourceError: RS-001, the disk is full; the checkpoints before stay.
    """
    buffer = io.BytesIO()
    torch.save({"progress": asdict(progress), "weights": weights, "optimiser": optimiser, "best": best}, buffer)
    atomic_write_bytes(folder / f"checkpoint-{progress.step:08d}.pt", buffer.getvalue())
    for path in _checkpoints(folder)[:-_KEPT]:
        path.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, Any]] | None:
    """The newest checkpoint that can be read whole, with its tensors; None when there is none."""
    for path in reversed(_checkpoints(folder)):
        with contextlib.suppress(Exception):  # cut off or damaged: the one before is as good
            found = torch.load(path, map_location="cpu", weights_only=True)
            return Progress(**found.pop("progress")), found
    return None


def require_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with other settings than training was begun with.

    Raises:
        OutputError: OU-040, with what differs.
    """
    before = read_json(folder / SETTINGS_FILE)
    if before is None or not has_checkpoints(folder):
        return  # nothing was learnt yet
    differing = sorted(_differences(before, settings))
    if differing:
        raise OutputError(
            "training was begun there with other settings: " + "; ".join(differing[:5]),
            code="OU-040",
            title="Training belongs to other settings",
            where=str(folder.parent),
            fix="give the same settings to go on, --overwrite to begin anew, or another -o",
        )


def has_checkpoints(folder: Path) -> bool:
    """Whether something was learnt there that is not finished."""
    return bool(_checkpoints(folder))


def forget_checkpoints(folder: Path) -> None:
    """Begin anew; for the holder of the folder's lock."""
    for path in _checkpoints(folder):
        path.unlink(missing_ok=True)


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{key}.{k}" if key else k)]
    return [] if before == now else [f"{key} was {before!r}, is {now!r}"]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name))
