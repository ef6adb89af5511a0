"""What only an unfinished run needs, removed at its end; or by the same command again, if the end was cut off."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.run.scratch import from_record, remove_store
from pipeline.store import RunLock, inspect_output, remove_temporaries
from pipeline.store.runfile import BEGUN_FILE, PLAN_FILE, SCRATCH_FOLDER
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_KEPT = "plan.kept.json"


def clean_up(scratch: Path, store: Path, lock: RunLock, *, keep: bool) -> None:
    """Remove all of it; releasing the lock then removes the empty folder.

    The plan goes last, for it tells where the store lies.

    Args:
        scratch: The run's private folder.
        store: Folder of its store.
        lock: Held.
        keep: Leave store and ledger; under its own name a plan means "unfinished", so it gets another.
    """
    if keep:
        reached("before-rename")
        (scratch / PLAN_FILE).replace(scratch / _KEPT)
        reached("after-rename")
        return
    remove_store(store)
    reached("after-remove")
    for name in ("ledger", "cluster"):
        shutil.rmtree(scratch / name, ignore_errors=True)
        reached("after-remove")
    remove_staged(scratch)
    reached("after-remove")
    remove_temporaries(scratch)
    for path in (*scratch.glob("stuck-*.json"), scratch / _KEPT, scratch / BEGUN_FILE, scratch / PLAN_FILE):
        path.unlink(missing_ok=True)
        reached("after-remove")
    lock.sweep()


def remove_staged(scratch: Path) -> None:
    """Remove what was being made of the tiles, by whomever."""
    for pattern in ("stage*", "polygons*"):
        for folder in scratch.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def finish_cleaning(out_dir: Path) -> None:
    """Clean up after a finished run whose process was killed before it could; does nothing where it was not."""
    scratch = out_dir / SCRATCH_FOLDER
    if not scratch.is_dir():
        return
    with contextlib.suppress(PipelineError, OSError), RunLock(scratch) as lock:  # held: somebody overwrites it
        state = inspect_output(out_dir)
        if state.run is None or (state.plan is not None and not is_of(state.plan, state.run)):
            return
        keep = _keeps(state.run)
        if not keep or state.plan is not None:
            clean_up(scratch, from_record((state.plan or {}).get("store"), scratch), lock, keep=keep)


def is_of(plan: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether a plan is that of the finished run, and not of an overwriting one that was cut off."""
    return plan.get("identity") == run.get("identity") and plan.get("plan") == run.get("frozen_plan")


def _keeps(run: Mapping[str, Any]) -> bool:
    settings = run.get("settings")
    return isinstance(settings, dict) and bool(settings.get("keep"))
