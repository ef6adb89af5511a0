"""What only an unfinished run needs, removed at its end; or by the same command again, if the end was cut off."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.run.scratch import from_record, ledger_of
from pipeline.store import RunLock, remove_temporaries
from pipeline.store.runfile import BEGUN_FILE, PLAN_FILE, SCRATCH_FOLDER
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.access import Access
    from pipeline.run.output import Output
    from pipeline.store import Place

_KEPT = "plan.kept.json"


def clean_up(scratch: Path, store: Place, lock: RunLock, *, home: Place, keep: bool) -> None:
    """Remove all of it; releasing the lock then removes the empty folder.

    The plan goes last, for it tells where the store lies.

    Args:
        scratch: The run's private folder.
        store: Where its tiles lie.
        lock: Held.
        home: Where its plan lies.
        keep: Leave store and ledger; under its own name a plan means "unfinished", so it gets another.
    """
    if keep:
        home.write(_KEPT, home.read(PLAN_FILE) or b"")
        home.delete(PLAN_FILE)
        reached("after-remove")
        return
    store.remove()
    reached("after-remove")
    ledger_of(store, scratch).remove()
    reached("after-remove")
    shutil.rmtree(scratch / "cluster", ignore_errors=True)
    reached("after-remove")
    remove_staged(scratch)
    reached("after-remove")
    remove_temporaries(scratch)
    for path in (*scratch.glob("stuck-*.json"), scratch / BEGUN_FILE):
        path.unlink(missing_ok=True)
        reached("after-remove")
    for name in (_KEPT, PLAN_FILE):
        home.delete(name)
        reached("after-remove")
    lock.sweep()


def remove_staged(scratch: Path) -> None:
    """Remove what was being made of the tiles, by whomever."""
    for pattern in ("stage*", "polygons*"):
        for folder in scratch.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def finish_cleaning(output: Output, access: Access) -> None:
    """Clean up after a finished run whose process was killed before it could; does nothing where it was not."""
    scratch = output.folder / SCRATCH_FOLDER
    if not scratch.is_dir() and not output.home.has(PLAN_FILE):
        return
    with contextlib.suppress(PipelineError, OSError), RunLock(scratch) as lock, output.locked():  # else overwritten now
        state = output.inspect(overwrite=False)
        if state.run is None or (state.plan is not None and not is_of(state.plan, state.run)):
            return
        keep = _keeps(state.run)
        if not keep or state.plan is not None:
            store = from_record((state.plan or {}).get("store"), scratch, access)
            clean_up(scratch, store, lock, home=output.home, keep=keep)


def is_of(plan: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether a plan is that of the finished run, and not of an overwriting one that was cut off."""
    return plan.get("identity") == run.get("identity") and plan.get("plan") == run.get("frozen_plan")


def _keeps(run: Mapping[str, Any]) -> bool:
    settings = run.get("settings")
    return isinstance(settings, dict) and bool(settings.get("keep"))
