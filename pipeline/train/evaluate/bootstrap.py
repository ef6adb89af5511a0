"""Intervals for full-coverage TRUTH: whole blocks are drawn anew, since neighbouring pixels err together.

Pixels of a scene are no independent sample, so counts of them give no interval. Blocks larger than the distance over
which errors look alike are nearly independent; drawing as many of them with replacement, again and again, shows how
much a score depends on where one looked (Efron & Tibshirani 1993; spatial blocks: Lahiri 2003).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.train.evaluate.jsonable import plain
from pipeline.train.metrics import class_scores, mean_over_present, overall_accuracy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.train.evaluate.classes import Classes

_LEVEL = (2.5, 97.5)
_FEW = 20
_MOST_BYTES = 256 << 20
_DRAWS_AT_ONCE = 256


def check_blocks(shape: tuple[int, int], block_px: int, num_classes: int) -> tuple[int, int]:
    """(rows, columns) of blocks.

    Raises:
        UsageError: EV-009, a single block; EV-012, too many to hold their matrices.
    """
    blocks = (-(-shape[0] // block_px), -(-shape[1] // block_px))
    count = blocks[0] * blocks[1]
    if count < 2:  # noqa: PLR2004 - one cannot vary
        raise UsageError(
            f"blocks of {block_px} px: PRED, {shape[0]} x {shape[1]} px, has one; a bootstrap needs two, better dozens",
            code="EV-009",
            title="Block size does not fit",
            fix="smaller blocks, or no --bootstrap",
        )
    if count * num_classes**2 * 8 > _MOST_BYTES:
        raise UsageError(
            f"{count} blocks with {num_classes} x {num_classes} counts each need "
            f"{count * num_classes**2 * 8 / 1e9:.1f} GB; expected at most {_MOST_BYTES / 1e9:.1f} GB",
            code="EV-012",
            title="Too many counts",
            fix="larger blocks, fewer classes (--recode), or no --bootstrap",
        )
    return blocks


def bootstrap(
    blocks: NDArray[np.int64], classes: Classes, *, draws: int, block_px: int, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """95 % percentile intervals, for the report, and notes.

    Args:
        blocks: `(block, class * class)`, confusion counts of each.
        classes: Their classes.
        draws: Sets of blocks drawn.
        block_px: Side of a block.
        seed: Of the draws.
    """
    used = blocks[blocks.sum(axis=1) > 0]
    scores = _draw(used, len(classes), draws, np.random.default_rng(seed))
    notes = []
    if len(used) < _FEW:
        notes.append(f"{len(used)} blocks with pixels to compare: intervals from fewer than {_FEW} are rough")
    report = {
        "draws": draws,
        "block_px": block_px,
        "blocks": len(used),
        "seed": seed,
        "level": 0.95,
        "overall": {name: _interval(scores[name]) for name in ("accuracy", "mean_iou")},
        "per_class": [
            {
                "value": value,
                "name": name,
                **{score: _interval(scores[score][:, i]) for score in ("iou", "f1", "precision", "recall")},
            }
            for i, (value, name) in enumerate(zip(classes.values, classes.names, strict=True))
        ],
    }
    return report, notes


def _draw(blocks: NDArray[np.int64], num_classes: int, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Scores of each draw, `(draw, …)`."""
    parts: list[dict[str, Any]] = []
    count = len(blocks)
    for start in range(0, draws, _DRAWS_AT_ONCE):
        some = min(_DRAWS_AT_ONCE, draws - start)
        times = rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=some)
        counts = (times.astype(np.float64) @ blocks).reshape(some, num_classes, num_classes)
        of = class_scores(counts)
        parts.append({
            "accuracy": overall_accuracy(counts),
            "mean_iou": mean_over_present(of.iou),
            "iou": of.iou, "f1": of.f1, "precision": of.precision, "recall": of.recall,
        })  # fmt: skip
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _interval(values: NDArray[np.float64]) -> list[float | None]:
    """Lower and upper end; draws without the class say nothing about it."""
    known = values[~np.isnan(values)]
    return plain(np.percentile(known, _LEVEL)) if len(known) else [None, None]
