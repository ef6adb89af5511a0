"""Many scenes on one cluster: list, model and settings in, a folder per scene and `batch.json` out.

Everything that is to be remembered lies in the scenes' own folders and in the batch's records, so a rerun continues,
and processes that were given different shares work on one batch without knowing of each other.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.model import Model, load_model
from pipeline.run.batch_work import BatchWork
from pipeline.run.events import Listener, silent
from pipeline.run.outcomes import FOLDER, Outcome, Outcomes
from pipeline.run.resolve import bare_options
from pipeline.run.scene_list import SceneRow, collect
from pipeline.run.settings import COSMETIC, SegmentSettings, make_settings
from pipeline.run.stop import stop_on_signals
from pipeline.store import create_output_folder

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """How a batch ended."""

    root: Path
    counts: dict[str, int]
    """`done`, `empty`, `failed`, `left`."""
    failures: tuple[Outcome, ...]
    summary_path: Path
    """`batch.json`."""

    @property
    def exit_code(self) -> int:
        """0 when every scene is done; 6 when some failed or are left."""
        return 6 if self.counts["failed"] or self.counts["left"] else 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "root": str(self.root),
            "counts": self.counts,
            "failures": [asdict(one) for one in self.failures],
            "summary": str(self.summary_path),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One of several equal parts of a batch."""

    index: int
    """From 0."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """From `3/8`.

        Raises:
            UsageError: CF-007.
        """
        index, slash, count = text.partition("/")
        if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(index=int(index), count=int(count))
        raise UsageError(
            f"--share {text!r} is no share, expected I/N with I from 0 to N - 1",
            code="CF-007",
            title="Command line is wrong",
            fix="write --share 0/8 for the first of eight",
        )

    def of(self, rows: Sequence[SceneRow]) -> list[SceneRow]:
        """Its scenes: each `count`-th one."""
        return list(rows[self.index :: self.count])


def batch(
    scenes: Sequence[str | Path],
    model: Model | str | Path,
    out_root: str | Path,
    *,
    lists: Sequence[Path] = (),
    asset: str | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    share: Share | None = None,
    listener: Listener = silent,
    **options: Any,
) -> BatchResult:
    """Segment many scenes, each into a folder of its own under `out_root`.

    Args:
        scenes: Paths, URIs and patterns.
        model: From `load_model`, or its path.
        out_root: Made when missing. A rerun continues; without scenes and lists, it continues with those of before.
        lists: Files that list scenes; see `scene_list.collect`.
        asset: Key of STAC items' asset to take.
        max_failures: Begin no more scenes once more than these have failed; None never stops.
        retry_failed: Try scenes again that have failed for good before.
        share: Only this part of the list.
        listener: Hears of scenes.
        **options: Fields of `SegmentSettings`.

    Raises:
        PipelineError: Nothing can be begun: wrong settings, lists, or a batch of something else at `out_root`.
        KeyboardInterrupt: After Ctrl-C; the same call continues.
    """
    settings = make_settings(options)
    root = Path(out_root).absolute()
    rows = collect(scenes, lists, asset=asset) if scenes or lists or not (root / FOLDER).is_dir() else []
    if not isinstance(model, Model):
        model = load_model(model, bare=bare_options(settings), trust_model=settings.trust_model)
    create_output_folder(root).rmdir()  # proves that it can be written; runs make their own
    outcomes = Outcomes(root)
    frozen = outcomes.freeze(rows, _identity(model, settings))
    given = {row.name for row in rows}
    mine = [row for row in frozen if not given or row.name in given]
    work = BatchWork(
        rows=mine if share is None else share.of(mine),
        model=model,
        settings=settings,
        outcomes=outcomes,
        max_failures=math.inf if max_failures is None else max_failures,
        retry_failed=retry_failed,
        listener=listener,
    )
    try:
        with stop_on_signals() as stop:
            work.run(stop)
    finally:
        outcomes.close()
        outcomes.write_summary(frozen, {"model": model.spec.name, "model_digest": model.digest})
    return BatchResult(
        root=root, counts=work.tally(), failures=tuple(work.failures()), summary_path=root / "batch.json"
    )


def _identity(model: Model, settings: SegmentSettings) -> dict[str, Any]:
    """Plain values that decide every scene's output."""
    told = settings.model_dump(mode="json")
    return {"model": model.digest, **{f"setting {name}": told[name] for name in sorted(told.keys() - COSMETIC)}}
