"""`scenemask status`: what an output folder holds, and how to go on. Touches nothing."""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.access import Access
from pipeline.errors import Interrupted, OutputError, UsageError
from pipeline.run.leftovers import is_of
from pipeline.run.output import output_at
from pipeline.run.plan import Plan
from pipeline.run.scratch import digest_of, from_record, ledger_of, open_store
from pipeline.run.settings import SegmentSettings
from pipeline.store import RunLock, scan_ledger
from pipeline.store.runfile import BEGUN_FILE, SCRATCH_FOLDER, refuse_changed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pipeline.location import Location
    from pipeline.run.output import Output
    from pipeline.store import OutputKind

_CARRIED = (
    "trust_model", "workers", "cluster", "memory", "keep", "stuck_after", "insecure_cluster", "allow_version_skew",
    "endpoint", "allow_loopback", "retries", "connect_timeout", "read_timeout",
)  # fmt: skip
"""Settings that a resumption does not adopt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lock."""

    host: str
    pid: int
    started: str
    """UTC, ISO 8601."""
    beats: bool
    """False: it is dead, and the next run takes over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an unfinished run has come."""

    stage: str
    """infer, mask, polygons, files or commit: what was going on, or comes next."""
    tiles: int
    done: int
    """Tiles with a record; damaged ones do not count."""
    damaged: int | None
    """Recorded tiles whose pixels are gone or wrong: they are computed again. None while a run is going on."""
    dropped_lines: int
    """Torn or damaged lines of the ledger."""
    command: str | None
    """What continues it; None where scene or model were given in Python and have no path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What an output folder holds."""

    kind: OutputKind
    """As `OutputState.kind`; complete also while another run is about to replace the results."""
    holder: Holder | None
    """None where nobody holds the lock."""
    progress: Progress | None
    """Of an unfinished run, also one that is about to replace complete results."""
    finished: str | None
    """When the complete run ended, UTC."""
    version: str | None
    """Of scenemask, that made the results."""
    files: dict[str, int]
    """Files of a complete run -> bytes as recorded; else those found."""

    @property
    def exit_code(self) -> int:
        """0 complete, 75 unfinished and resumable, 5 foreign, 2 nothing there."""
        codes = {"complete": 0, "unfinished": Interrupted.exit_code, "foreign": OutputError.exit_code}
        return codes.get(self.kind, UsageError.exit_code)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "exit_code": self.exit_code}


def status_of(
    out_dir: str | Path | Location,
    *,
    access: Access | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Status:
    """Look at an output folder; takes up to two heartbeats where a run of another machine holds the lock.

    Args:
        out_dir: Output folder, which need not exist, or `s3://bucket/prefix`.
        access: How a bucket is reached.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.

    Raises:
        UsageError: CF-002, it is no folder or cannot be read.
        OutputError: OU-017, its records were changed.
        InfrastructureError: ST-010 to ST-013.
    """
    access = (access or Access()).resolved()
    output = output_at(out_dir, access)
    try:
        return _status(output, access, RunLock(output.folder / SCRATCH_FOLDER, clock=clock, sleep=sleep))
    finally:
        output.tidy()


def _status(output: Output, access: Access, lock: RunLock) -> Status:
    state = output.look()
    refuse_changed(output.place, state)
    run: Mapping[str, Any] = state.run or {}
    held = lock.holder() or output.holder()
    holder = None
    if held is not None:
        owner, beats = held
        holder = Holder(host=owner.host, pid=owner.pid, started=owner.started, beats=beats)
    plan = None if state.plan is None or (run and is_of(state.plan, run)) else state.plan  # else it ended
    files = run.get("files")
    if isinstance(files, dict):
        sizes = {name: int(told["bytes"]) for name, told in files.items()}
    else:
        sizes = output.sizes(state.names)
    return Status(
        kind=state.kind,
        holder=holder,
        progress=None
        if plan is None
        else _progress(output, access, plan, busy=holder is not None and holder.beats, overwrite=bool(run)),
        finished=run.get("finished"),
        version=run.get("scenemask"),
        files=sizes,
    )


def _progress(
    output: Output, access: Access, document: Mapping[str, Any], *, busy: bool, overwrite: bool
) -> Progress | None:
    """None where the plan is of a version that this one cannot read."""
    scratch = output.folder / SCRATCH_FOLDER
    try:
        plan = Plan.from_json(document["plan"])
        settings = SegmentSettings.model_validate(document["settings"])
    except (KeyError, TypeError, ValueError):
        return None
    place = from_record(document.get("store"), scratch, access)
    scan = scan_ledger(ledger_of(place, scratch), plan_id=plan.digest)
    tiles = plan.tiling.tiles()
    damaged = None
    if not busy:
        store = open_store(place, plan)
        digests = {i: digest_of(record) for i, record in scan.records.items()}
        wrong = list(digests) if store is None else store.find_damaged((tile.core for tile in tiles), digests)
        damaged = len(wrong)
    done = len(scan.records) - (damaged or 0)
    return Progress(
        stage=_stage(scratch, settings, left=len(tiles) - done),
        tiles=len(tiles),
        done=done,
        damaged=damaged,
        dropped_lines=scan.dropped_lines,
        command=command_of(document, settings, output.place, overwrite=overwrite),
    )


def _stage(scratch: Path, settings: SegmentSettings, *, left: int) -> str:
    if (scratch / BEGUN_FILE).exists():
        return "commit"
    if left:
        return "infer"
    staged = [_names(folder) for folder in scratch.glob("stage*")]  # of a batch there may be several
    if not any("mask.tif" in names for names in staged):
        return "mask"
    polygons = {f"polygons.{suffix}" for suffix in settings.vectors}
    return "files" if any(polygons <= names for names in staged) else "polygons"


def _names(folder: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError):  # its files were moved into place just now
        return {path.name for path in folder.iterdir()}
    return set()


def command_of(
    document: Mapping[str, Any], settings: SegmentSettings, out_dir: Path | Location, *, overwrite: bool
) -> str | None:
    """The command that continues a run, from its plan.json; settings that it adopts are left out."""
    inputs = document.get("inputs")
    if not isinstance(inputs, dict) or not inputs.get("scene") or not inputs.get("model"):
        return None
    scenes = inputs["scene"] if isinstance(inputs["scene"], list) else [inputs["scene"]]
    parts = ["scenemask", "segment", *map(str, scenes), "-m", inputs["model"], "-o", str(out_dir)]
    for name in _CARRIED:
        value = getattr(settings, name)
        if value != SegmentSettings.model_fields[name].default:
            flag = f"--{name.replace('_', '-')}"
            parts += [flag] if value is True else [flag, f"{value}B" if name == "memory" else str(value)]
    return shlex.join([*parts, *(["--overwrite"] if overwrite else [])])
