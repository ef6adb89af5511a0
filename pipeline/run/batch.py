"""Many scenes on one cluster: list, model and settings in, a folder per scene and `batch.json` out.

Everything that is to be remembered lies in the scenes' own folders and in the batch's records, so a rerun continues,
and processes that were given different shares work on one batch without knowing of each other.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.infer import share_heap
from pipeline.run.batch_work import BatchWork
from pipeline.run.events import Listener, silent
from pipeline.run.freeze import freeze_batch
from pipeline.run.settings import make_settings
from pipeline.run.stop import stop_on_signals
from pipeline.store import open_files_as_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.location import Location
    from pipeline.model import Model
    from pipeline.run.outcomes import Outcome
    from pipeline.run.share import Share


Split = Literal["scenes", "tiles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """How a batch ended."""

    root: Path | Location
    by_tiles: bool
    """Whether only tiles were computed, and scenes are left for a run that makes their files."""
    passed_on: int
    """Scenes that other processes hold."""
    counts: dict[str, int]
    """`done`, `empty`, `failed`, `left`."""
    failures: tuple[Outcome, ...]
    summary_path: Path | Location
    """`batch.json`."""

    @property
    def exit_code(self) -> int:
        """0 when every scene is done; 6 when some failed or are left."""
        left = self.passed_on if self.by_tiles else self.counts["left"]
        return 6 if self.counts["failed"] or left else 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "root": str(self.root),
            "counts": self.counts,
            "failures": [asdict(one) for one in self.failures],
            "transient": sum(one.transient for one in self.failures),
            "summary": str(self.summary_path),
        }


@open_files_as_error()
def batch(
    scenes: Sequence[str | Path],
    model: Model | str | Path,
    out_root: str | Path | Location,
    *,
    lists: Sequence[Path] = (),
    asset: str | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    share: Share | None = None,
    split: Split = "scenes",
    listener: Listener = silent,
    **options: Any,
) -> BatchResult:
    """Segment many scenes, each into a folder of its own under `out_root`.

    Args:
        scenes: Paths, URIs and patterns.
        model: From `load_model`, or its path.
        out_root: Made when missing; or `s3://bucket/prefix`. A rerun continues; without scenes and lists, it continues
            with those of before.
        lists: Files that list scenes; see `scene_list.collect`.
        asset: Key of STAC items' asset to take.
        max_failures: Begin no more scenes once more than these have failed; None never stops.
        retry_failed: Try scenes again that have failed for good before.
        share: Only this part of the work.
        split: What the share is a part of: `scenes`, or `tiles` of each scene, whose files a run without a share then
            makes.
        listener: Hears of scenes.
        **options: Fields of `SegmentSettings`.

    Raises:
        PipelineError: Nothing can be begun: wrong settings, lists, or a batch of something else at `out_root`.
        KeyboardInterrupt: After Ctrl-C; the same call continues.
    """
    share_heap()
    settings = make_settings(options)
    frozen = freeze_batch(scenes, model, out_root, settings=settings, lists=lists, asset=asset)
    outcomes = frozen.outcomes
    by_tiles = share if split == "tiles" else None
    work = BatchWork(
        root=frozen.root,
        rows=frozen.asked if share is None or by_tiles else share.of(frozen.asked),
        model=frozen.model,
        settings=settings,
        outcomes=outcomes,
        max_failures=math.inf if max_failures is None else max_failures,
        retry_failed=retry_failed,
        tiles_of=by_tiles,
        listener=listener,
    )
    try:
        with stop_on_signals() as stop:
            work.run(stop)
    finally:
        outcomes.close()
        outcomes.write_summary(frozen.rows, {"model": frozen.model.spec.name, "model_digest": frozen.model.digest})
    return BatchResult(
        root=frozen.root,
        by_tiles=by_tiles is not None,
        passed_on=work.passed_on,
        counts=work.tally(),
        failures=tuple(work.failures()),
        summary_path=frozen.root / "batch.json",
    )
