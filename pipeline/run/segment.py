"""The main job: scene and model in, mask, polygons, preview and records out. Resumable at any moment."""

from __future__ import annotations

import functools
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import OutputError, PipelineError
from pipeline.infer import give_back_freed, resolve_device
from pipeline.model import Model, load_model
from pipeline.run.cluster import connect
from pipeline.run.demand import budget_left
from pipeline.run.events import Event, Listener, Notice, StageAdvanced, StageFinished, StageStarted, silent
from pipeline.run.execute import StopFlag, run_tiles, stop_on_signals
from pipeline.run.finish import Finisher
from pipeline.run.identity import adopt_settings, identity, refuse_differences
from pipeline.run.leftovers import clean_up, finish_cleaning
from pipeline.run.plan import Plan, make_plan
from pipeline.run.record import run_record
from pipeline.run.resolve import bare_options, matched_by_position, resolve_scene
from pipeline.run.scratch import (
    create_store,
    digest_of,
    from_record,
    new_place,
    open_store,
    remove_store,
    require_room,
    to_record,
)
from pipeline.run.settings import OWN_CLUSTERS, SegmentSettings, make_settings
from pipeline.run.tile_task import Job, TileDone
from pipeline.run.vectorize import cleaning_of
from pipeline.run.verify import Verification, Verifier
from pipeline.scene import Aoi
from pipeline.store import (
    RunLock,
    Staging,
    TileRecord,
    TileStore,
    atomic_write_json,
    changed_files,
    create_output_folder,
    foreign_output,
    inspect_output,
    refuse_own_input,
    scan_ledger,
)
from pipeline.store.runfile import PLAN_FILE
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.grid import Tile, Window
    from pipeline.scene import Scene
    from pipeline.store import OutputState

_MANY_FLIPS = 0.005
"""Share of sampled pixels whose class differs from float32, above which a precision that was asked for is warned of."""
_FORMAT_VERSION = 3
"""Of plan.json and run.json; raised when an older one can no longer be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run left."""

    out_dir: Path
    mask_path: Path
    polygons_paths: tuple[Path, ...]
    """One per format asked for."""
    summary: dict[str, Any]
    """Content of run.json."""
    resumed: bool
    """True when nothing had to be computed: the same run had ended here before."""

    @property
    def polygons_path(self) -> Path | None:
        """The first of `polygons_paths`; None without vectors."""
        return self.polygons_paths[0] if self.polygons_paths else None


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run on its way: what was resolved, and what has been measured so far."""

    scene: Scene
    model: Model
    settings: SegmentSettings
    explicit: set[str]
    aoi: Aoi | None
    identity: dict[str, Any]
    out_dir: Path
    listener: Listener
    started: float = field(default_factory=time.time)
    timings: dict[str, float] = field(default_factory=dict)

    def tell(self, event: Event) -> None:
        """Pass on an event; keeps how long stages took."""
        if isinstance(event, StageStarted | StageFinished):
            reached(f"{'begin' if isinstance(event, StageStarted) else 'end'}-{event.name}")
        if isinstance(event, StageFinished):
            self.timings[event.name] = round(event.seconds, 3)
        self.listener(event)


def segment(
    scene: Any,
    model: Model | str | Path,
    out_dir: str | Path,
    *,
    overwrite: bool = False,
    listener: Listener = silent,
    **options: Any,
) -> RunResult:
    """Segment a whole scene into `out_dir`.

    Args:
        scene: Path, `xarray.DataArray` (band, y, x) with a CRS, or a `Scene`.
        model: From `load_model`, or its path.
        out_dir: Made when missing. A rerun of the same call resumes, or returns at once when all is done.
        overwrite: Replace results that are there already, in one step at the end.
        listener: Hears of stages and tiles.
        **options: Fields of `SegmentSettings`.

    Returns:
        Paths and the record of the run.

    Raises:
        PipelineError: With an exit code and a fix; see `docs/errors.md`. Results that were there stay whole.
        KeyboardInterrupt: After Ctrl-C; the same call resumes.
    """
    given = make_settings(options)
    out_dir = Path(out_dir).absolute()  # workers, and a resumption, may stand in another folder
    prepare = functools.partial(_prepare, scene, model, given, out_dir=out_dir, overwrite=overwrite, listener=listener)
    state = _inspect(out_dir, overwrite=overwrite)
    run = prepare(state)
    if state.kind == "complete" and not overwrite:
        return _already_done(run, state)
    scratch = create_output_folder(out_dir)
    with stop_on_signals() as stop, RunLock(scratch) as lock:
        now = _inspect(out_dir, overwrite=overwrite)
        if now != state:  # another run began or ended before we had the lock
            run = prepare(now)
            if now.kind == "complete" and not overwrite:
                return _already_done(run, now)
        return _locked(run, scratch, lock, stop, overwrite=overwrite)


def _inspect(out_dir: Path, *, overwrite: bool) -> OutputState:
    """What the output folder holds.

    Raises:
        OutputError: OU-001, results that no run accounts for, and they are not to be replaced.
    """
    state = inspect_output(out_dir)
    if state.kind == "foreign" and not overwrite:
        raise foreign_output(out_dir, state)
    return state


def _prepare(
    scene: Any,
    model: Model | str | Path,
    given: SegmentSettings,
    state: OutputState,
    *,
    out_dir: Path,
    overwrite: bool,
    listener: Listener,
) -> _Run:
    """Scene, model and settings opened, those of the run that is there adopted where they were not given.

    They decide how scene and model are opened, so they are adopted before that. With `overwrite`, a run that differs
    is not continued but replaced by one with the settings given.
    """
    adopted = adopt_settings(given, _recorded(state, overwrite=overwrite))
    try:
        run = _open(scene, model, adopted, given.model_fields_set, out_dir=out_dir, listener=listener)
        if overwrite and state.plan is not None:
            before: Any = state.plan["identity"]
            refuse_differences(before, run.identity, explicit=run.explicit, where=out_dir)
    except PipelineError:
        if not overwrite:
            raise
        return _open(scene, model, given, given.model_fields_set, out_dir=out_dir, listener=listener)
    return run


def _recorded(state: OutputState, *, overwrite: bool) -> dict[str, Any]:
    """Settings of the run that would be continued; empty without one."""
    document = state.plan if overwrite or state.kind == "unfinished" else state.run
    settings = (document or {}).get("settings")
    return settings if isinstance(settings, dict) else {}


def _open(
    scene: Any,
    model: Model | str | Path,
    settings: SegmentSettings,
    explicit: set[str],
    *,
    out_dir: Path,
    listener: Listener,
) -> _Run:
    inputs = {"scene": getattr(scene, "path", scene), "model": model, "area of interest": settings.aoi}
    refuse_own_input(out_dir, {kind: Path(path) for kind, path in inputs.items() if isinstance(path, str | Path)})
    if not isinstance(model, Model):
        model = load_model(model, bare=bare_options(settings), trust_model=settings.trust_model)
    opened = resolve_scene(scene, model, settings)
    cleaning_of(settings, model.spec.legend())  # classes that it does not have are refused before the work
    aoi = None if settings.aoi is None else Aoi.from_file(settings.aoi, opened.geobox)
    return _Run(
        scene=opened,
        model=model,
        settings=settings,
        explicit=explicit,
        aoi=aoi,
        identity=identity(opened, model, settings, aoi_digest=None if aoi is None else aoi.digest()),
        out_dir=out_dir,
        listener=listener,
    )


def _locked(run: _Run, scratch: Path, lock: RunLock, stop: StopFlag, *, overwrite: bool) -> RunResult:
    """Everything that happens while nobody else may touch the output."""
    plan, store = _plan_or_adopt(run, scratch, overwrite=overwrite)
    warnings = _warnings(run, plan)
    for warning in warnings:
        run.tell(Notice(text=warning))
    records = _infer(run, plan, store, scratch / "ledger", stop)
    verified = _verify(run, plan, store, records, stop)
    stop.raise_if_set("all tiles are kept")
    staging = Staging(run.out_dir)
    staging.clear()

    def check() -> None:
        reached("step")
        stop.raise_if_set("all tiles are kept")

    done = Finisher(
        scene=run.scene,
        model=run.model,
        settings=run.settings,
        plan=plan,
        store=store,
        records=records,
        staging=staging,
        scratch=scratch,
        tell=run.tell,
        check=check,
    ).run()
    stop.raise_if_set("all tiles are kept")
    _refuse_changed_scene(run)
    lock.ensure_held()
    record = run_record(
        identity=run.identity,
        settings=run.settings,
        plan=plan,
        model=run.model,
        scene=run.scene,
        warnings=warnings,
        records=list(records.values()),
        finished=done,
        verified=verified,
        timings=run.timings,
        started=run.started,
    )
    staging.commit(done.names, record)
    clean_up(scratch, store.path, lock, keep=run.settings.keep)
    return _result(run.out_dir, record, resumed=False)


def _warnings(run: _Run, plan: Plan) -> list[str]:
    """What a person should know before trusting the result; told, and kept in run.json."""
    warnings = [*run.scene.warnings, *run.model.warnings]
    if run.settings.bands is None and matched_by_position(run.scene, run.model):
        names = ", ".join(f"{b.name} → {n}" for b, n in zip(run.scene.bands, run.model.spec.bands, strict=True))
        warnings.append(f"bands were matched by position: {names}")
    if (plan.flips_frac or 0.0) > _MANY_FLIPS:
        warnings.append(
            f"{plan.engine.precision} changes the class of {plan.flips_frac:.2%} of sampled pixels; "
            "--precision float32 is the reference"
        )
    return warnings


def _already_done(run: _Run, state: OutputState) -> RunResult:
    """The same run ended here before: check it, and compute nothing."""
    record: dict[str, Any] = dict(state.run or {})
    if "identity" not in record or "files" not in record:
        raise foreign_output(run.out_dir, state)
    refuse_differences(record["identity"], run.identity, explicit=run.explicit, where=run.out_dir)
    if run.settings.verify and record.get("verify") is None:
        raise OutputError(
            "--verify was given, but the run that ended here was not verified and its tiles are gone",
            code="OU-014",
            title="Results were not verified",
            where=str(run.out_dir),
            fix="leave --verify out, or segment again with --overwrite",
        )
    changed = changed_files(run.out_dir, record["files"])
    if changed:
        raise OutputError(
            f"{', '.join(changed)} changed since the run that run.json records",
            code="OU-012",
            title="Results were changed",
            where=str(run.out_dir),
            fix="restore them, choose another -o, or replace them with --overwrite",
        )
    finish_cleaning(run.out_dir)
    run.tell(Notice(text="the same run ended here before and its files are whole; nothing to do"))
    return _result(run.out_dir, record, resumed=True)


def _plan_or_adopt(run: _Run, scratch: Path, *, overwrite: bool) -> tuple[Plan, TileStore]:
    """The frozen plan of an unfinished run, or a new one."""
    document = inspect_output(run.out_dir).plan
    if document is not None and document.get("format") == _FORMAT_VERSION:
        try:
            return _adopt(run, dict(document), scratch)
        except OutputError:
            if not overwrite:
                raise
    elif document is not None and not overwrite:
        raise OutputError(
            f"the unfinished run has format {document.get('format')}, this version writes {_FORMAT_VERSION}",
            code="OU-011",
            title="Run does not match the output",
            where=str(run.out_dir),
            fix="finish it with the version that began it, or add --overwrite",
        )
    plan = make_plan(run.scene, run.model, run.settings)
    if document is not None:
        remove_store(from_record(document.get("store"), scratch))
    for leftover in ("store", "ledger"):  # what is staged is cleared before it is used
        shutil.rmtree(scratch / leftover, ignore_errors=True)
    return plan, _begin(run, plan, new_place(scratch, run.settings.scratch), scratch)


def _begin(run: _Run, plan: Plan, place: Path, scratch: Path) -> TileStore:
    """The frozen plan on disk, then an empty store: at no moment is there a store that no plan tells of."""
    legend = run.model.spec.legend()
    require_room(place, out_dir=run.out_dir, plan=plan, legend=legend)
    begins = not (scratch / PLAN_FILE).exists()
    atomic_write_json(
        scratch / PLAN_FILE,
        {
            "format": _FORMAT_VERSION,
            "identity": run.identity,
            "settings": run.settings.model_dump(mode="json"),
            "plan": plan.to_json(),
            "store": to_record(place, scratch),
            "inputs": {"scene": _path_of(run.scene), "model": _path_of(run.model)},
        },
    )
    try:
        return create_store(place, plan=plan, legend=legend)
    except PipelineError:
        if begins:  # refused, not cut off
            (scratch / PLAN_FILE).unlink()
        raise


def _path_of(what: Scene | Model) -> str | None:
    """Where it lies, for the command that `status` tells; of an address not what may be a signature."""
    path = getattr(what, "path", None)
    if path is None or "://" in str(path):
        return None if path is None else str(path).partition("?")[0]
    return str(Path(path).absolute())


def _adopt(run: _Run, document: dict[str, Any], scratch: Path) -> tuple[Plan, TileStore]:
    refuse_differences(document["identity"], run.identity, explicit=run.explicit, where=run.out_dir)
    plan = Plan.from_json(document["plan"])
    if plan.engine.device == "cuda":
        resolve_device("cuda")
    place = from_record(document["store"], scratch)
    store = open_store(place, plan)
    if store is None:
        if (scratch / "ledger").exists():
            run.tell(Notice(text=f"the finished tiles in {place} are gone; all tiles are computed again"))
        shutil.rmtree(scratch / "ledger", ignore_errors=True)
        remove_store(place)
        place = place if run.settings.scratch is None else new_place(scratch, run.settings.scratch)
        store = _begin(run, plan, place, scratch)
    store.remove_partials()
    return plan, store


def _infer(run: _Run, plan: Plan, store: TileStore, ledger: Path, stop: StopFlag) -> dict[int, TileRecord]:
    """Compute the tiles that the ledger does not have, or has with pixels that are no longer there."""
    tiles = plan.tiling.tiles()
    scan = scan_ledger(ledger, plan_id=plan.digest)
    records = dict(scan.records)
    damaged = store.find_damaged(_until(stop, tiles), {i: digest_of(r) for i, r in records.items()})
    for index in damaged:
        del records[index]
    if damaged:
        run.tell(Notice(text=f"{len(damaged)} finished tiles are damaged on disk and are computed again"))
    missing = [tile for tile in tiles if tile.index not in records]
    total = len(tiles)
    run.tell(StageStarted(name="infer", total=total, done=len(records)))
    started = time.monotonic()

    def on_done(done: TileDone) -> None:
        records[done.record.tile] = done.record
        run.tell(StageAdvanced(name="infer", done=len(records), total=total, pixels=done.pixels))

    if missing:
        job = Job(
            key=f"{plan.digest}-{ledger.parent.name}-{time.monotonic_ns():x}",
            scene=run.scene,
            model=run.model,
            plan=plan,
            aoi=run.aoi,
            store=store,
            ledger=ledger,
            own_cluster=run.settings.cluster in OWN_CLUSTERS,
        )
        with connect(run.settings, device=plan.engine.device) as connection:
            run_tiles(connection, job, missing, attempts=scan.attempts, on_done=on_done, stop=stop)
    stop.raise_if_set(f"{len(records)} of {total} tiles are kept")
    run.tell(StageFinished(name="infer", seconds=time.monotonic() - started))
    return records


def _until(stop: StopFlag, tiles: Sequence[Tile]) -> Iterator[Window]:
    """Cores of the tiles, until a signal comes: looking through a large store takes its time."""
    for tile in tiles:
        stop.raise_if_set("all finished tiles are kept")
        yield tile.core


def _verify(
    run: _Run, plan: Plan, store: TileStore, records: Mapping[int, TileRecord], stop: StopFlag
) -> Verification | None:
    """Compare sampled windows, where that was asked for."""
    if not run.settings.verify:
        return None
    started = time.monotonic()
    run.tell(StageStarted(name="verify"))
    give_back_freed()  # the budget knows what the process holds
    made = Verifier(
        scene=run.scene,
        model=run.model,
        plan=plan,
        aoi=run.aoi,
        store=store,
        budget_bytes=budget_left(run.settings, plan.engine.device),
        check_stop=lambda: stop.raise_if_set("all tiles are kept"),
    ).run(records, count=run.settings.verify)
    run.tell(StageFinished(name="verify", seconds=time.monotonic() - started))
    return made


def _refuse_changed_scene(run: _Run) -> None:
    if run.scene.fingerprint() != run.identity["scene"]:
        raise OutputError(
            "the scene changed while it was being segmented",
            code="OU-013",
            title="Scene changed during the run",
            where=run.scene.name,
            fix="run again with --overwrite once the file no longer changes",
        )


def _result(out_dir: Path, record: Mapping[str, Any], *, resumed: bool) -> RunResult:
    names = record["files"]
    return RunResult(
        out_dir=out_dir,
        mask_path=out_dir / "mask.tif",
        polygons_paths=tuple(out_dir / name for name in names if name.startswith("polygons.")),
        summary=dict(record),
        resumed=resumed,
    )
