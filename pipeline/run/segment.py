"""The main job: scene and model in, mask, polygons, preview and records out. Resumable at any moment."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import OutputError
from pipeline.infer import share_heap
from pipeline.run.cluster import admit, connect
from pipeline.run.events import Listener, Notice, StageAdvanced, StageFinished, StageStarted, silent
from pipeline.run.feed import run_tiles
from pipeline.run.identity import refuse_differences
from pipeline.run.leftovers import finish_cleaning
from pipeline.run.output import Output, output_at
from pipeline.run.plan import make_plan, plan_from
from pipeline.run.plan_there import basis_of_a_worker
from pipeline.run.results import make_files
from pipeline.run.scene_run import Ongoing, SceneRun, adopt, begin, commit, given_places, prepare, warnings_of
from pipeline.run.scratch import shared_place
from pipeline.run.settings import access_of, make_settings
from pipeline.run.stop import StopFlag, stop_on_signals
from pipeline.run.tasks import Watch
from pipeline.run.tile_task import drop_engine
from pipeline.run.tracers import hands_on
from pipeline.run.workers import device_wanted, on_this_machine
from pipeline.store import Folder, RunLock, create_output_folder, foreign_output, open_files_as_error
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.location import Location
    from pipeline.model import Model
    from pipeline.run.cluster import Connection
    from pipeline.run.tile_task import TileDone
    from pipeline.store import OutputState
    from pipeline.vector import Hands


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished run left."""

    out_dir: Path | Location
    mask_path: Path | Location
    polygons_paths: tuple[Path | Location, ...]
    """One per format asked for."""
    summary: dict[str, Any]
    """Content of run.json."""
    resumed: bool
    """True when nothing had to be computed: the same run had ended here before."""

    @property
    def polygons_path(self) -> Path | Location | None:
        """The first of `polygons_paths`; None without vectors."""
        return self.polygons_paths[0] if self.polygons_paths else None


@open_files_as_error()
def segment(
    scene: Any,
    model: Model | str | Path,
    out_dir: str | Path | Location,
    *,
    overwrite: bool = False,
    listener: Listener = silent,
    **options: Any,
) -> RunResult:
    """Segment a whole scene into `out_dir`.

    Args:
        scene: Path or address, `xarray.DataArray` (band, y, x) with a CRS, or a `Scene`.
        model: From `load_model`, or its path. One that you hold stays ready on a CPU between calls, compiled and with
            its memory, until another is used or you let go of it.
        out_dir: Made when missing; or `s3://bucket/prefix`, where results are sent when they are whole. A rerun of the
            same call resumes, or returns at once when all is done.
        overwrite: Replace results that are there already, in one step at the end.
        listener: Hears of stages and tiles.
        **options: Fields of `SegmentSettings`.

    Returns:
        Paths and the record of the run.

    Raises:
        PipelineError: With an exit code and a fix; see `docs/errors.md`. Results that were there stay whole.
        KeyboardInterrupt: After Ctrl-C; the same call resumes.
    """
    share_heap()
    given = make_settings(options)
    # absolute: workers, and a resumption, may stand in another folder
    output = output_at(out_dir, access_of(given), given.scratch)
    for place in given_places(scene):
        output.refuse_input(place)
    opened = functools.partial(prepare, scene, model, given, output=output, overwrite=overwrite, listener=listener)
    with contextlib.ExitStack() as ending:
        ending.callback(output.tidy)
        state = output.inspect(overwrite=overwrite)
        run = opened(state)
        if state.kind == "complete" and not overwrite:
            return _already_done(run, output, state)
        scratch = create_output_folder(output.folder)
        stop, lock = ending.enter_context(stop_on_signals()), ending.enter_context(RunLock(scratch))
        ending.enter_context(output.locked())
        now = output.inspect(overwrite=overwrite)
        if now != state:  # another run began or ended before we had the lock
            run = opened(now)
            if now.kind == "complete" and not overwrite:
                return _already_done(run, output, now)
        return _locked(run, output, scratch, lock, stop, overwrite=overwrite)


class _Cluster:
    """Connected to once it is needed, until the end of the run's computing."""

    def __init__(self, run: SceneRun, scratch: Path, stop: StopFlag, stack: contextlib.ExitStack) -> None:
        self._run, self._settings = run, run.settings
        self._scratch = scratch
        self._stop = stop
        self._stack = stack
        self._connection: Connection | None = None

    def check_stop(self) -> None:
        """End the run if a signal came."""
        self._stop.raise_if_set("finished tiles are kept")

    def connection(self, *, device: str) -> Connection:
        """The workers, before it is known what they are to do."""
        if self._connection is None:
            shared = shared_place(self._settings)
            connecting = connect(
                self._settings,
                device=device,
                keys=self._scratch,
                seen=(self._run.home,) if shared is None else (shared,),
                check_stop=self.check_stop,
            )
            self._connection = self._stack.enter_context(connecting)
        return self._connection

    def ready_for(self, ongoing: Ongoing) -> Connection:
        """The workers, asked whether they can do what the plan says."""
        connection = self.connection(device=ongoing.plan.engine.device)
        admit(connection, engine=ongoing.plan.engine, seen=(ongoing.store.place,))
        return connection

    def hands(self, watch: Watch, *, device: str) -> Hands | None:
        """The workers for polygons, where they are processes of this machine; others are let go.

        While masks are written workers have nothing to do; those on other hosts are better given back. Those that hold
        a GPU's memory too: windows are verified there.
        """
        connection = self._connection
        if connection is None or connection.in_process or not self._settings.vectors or device != "cpu":
            return None
        return hands_on(connection, watch=watch) if on_this_machine(self._settings) else None


def _locked(
    run: SceneRun, output: Output, scratch: Path, lock: RunLock, stop: StopFlag, *, overwrite: bool
) -> RunResult:
    """Everything that happens while nobody else may touch the output."""
    with contextlib.ExitStack() as stack:
        cluster = _Cluster(run, scratch, stop, stack)
        ongoing = adopt(run, scratch, overwrite=overwrite) or _begin(run, scratch, cluster)
        for warning in warnings_of(run, ongoing.plan):
            run.tell(Notice(text=warning))
        _infer(ongoing, cluster, stop)
        stop.raise_if_set("all tiles are kept")
        hands = cluster.hands(_watch(ongoing, stop), device=ongoing.plan.engine.device)
        if hands is None:
            stack.close()
        staging = output.staging()
        staging.clear()

        def check() -> None:
            reached("step")
            stop.raise_if_set("all tiles are kept")

        done, verified = make_files(
            ongoing.recipe(), run.model, staging=staging, scratch=scratch, tell=run.tell, check=check, hands=hands
        )
    record = commit(ongoing, done, verified, staging.commit, lock)
    return _result(output.place, record, resumed=False)


def _begin(run: SceneRun, scratch: Path, cluster: _Cluster) -> Ongoing:
    """A new plan, made where its work will be done: the machine that asks may have no GPU, or other cores."""
    started = time.monotonic()
    drop_engine(unless_of=run.model)  # measuring another model needs the memory
    run.tell(StageStarted(name="plan"))
    if on_this_machine(run.settings):
        plan = make_plan(run.scene, run.model, run.settings)
    else:
        device = "cuda" if device_wanted(run.settings) == "cuda" else "cpu"
        basis = basis_of_a_worker(
            cluster.connection(device=device), run.scene, run.model, run.settings, check_stop=cluster.check_stop
        )
        plan = plan_from(run.scene, run.model, run.settings, basis)
    run.tell(StageFinished(name="plan", seconds=time.monotonic() - started))
    return begin(run, plan, scratch)


def _infer(ongoing: Ongoing, cluster: _Cluster, stop: StopFlag) -> None:
    """Compute the tiles that are missing."""
    run, records = ongoing.run, ongoing.records
    missing = ongoing.read_ledger(stop)
    records = ongoing.records
    total = len(records) + len(missing)
    run.tell(StageStarted(name="infer", total=total, done=len(records)))
    started = time.monotonic()

    def on_done(done: TileDone) -> None:
        records[done.record.tile] = done.record
        run.tell(StageAdvanced(name="infer", done=len(records), total=total, pixels=done.pixels))

    if missing:
        connection = cluster.ready_for(ongoing)
        run_tiles(
            connection,
            ongoing.job(),
            run.model,
            missing,
            attempts=ongoing.attempts,
            on_done=on_done,
            watch=_watch(ongoing, stop),
            # A GPU's memory is wanted by others between two scenes.
            keep_engine=run.model_stays and connection.in_process and ongoing.plan.engine.device == "cpu",
        )
    stop.raise_if_set(f"{len(records)} of {total} tiles are kept")
    run.tell(StageFinished(name="infer", seconds=time.monotonic() - started))


def _watch(ongoing: Ongoing, stop: StopFlag) -> Watch:
    run = ongoing.run
    return Watch(stop=stop, tell=run.tell, stuck_after_s=run.settings.stuck_after, dump_to=Folder(ongoing.scratch))


def _already_done(run: SceneRun, output: Output, state: OutputState) -> RunResult:
    """The same run ended here before: check it, and compute nothing."""
    record: dict[str, Any] = dict(state.run or {})
    if "identity" not in record or "files" not in record:
        raise foreign_output(output.place, state)
    refuse_differences(record["identity"], run.identity, explicit=run.explicit, where=output.place)
    if run.settings.verify and record.get("verify") is None:
        raise OutputError(
            "--verify was given, but the run that ended here was not verified and its tiles are gone",
            code="OU-014",
            title="Results were not verified",
            where=str(output.place),
            fix="leave --verify out, or segment again with --overwrite",
        )
    changed = output.changed(record["files"])
    if changed:
        raise OutputError(
            f"{', '.join(changed)} changed since the run that run.json records",
            code="OU-012",
            title="Results were changed",
            where=str(output.place),
            fix="restore them, choose another -o, or replace them with --overwrite",
        )
    finish_cleaning(output, access_of(run.settings))
    run.tell(Notice(text="the same run ended here before and its files are whole; nothing to do"))
    return _result(output.place, record, resumed=True)


def _result(out_dir: Path | Location, record: Mapping[str, Any], *, resumed: bool) -> RunResult:
    names = record["files"]
    return RunResult(
        out_dir=out_dir,
        mask_path=out_dir / "mask.tif",
        polygons_paths=tuple(out_dir / name for name in names if name.startswith("polygons.")),
        summary=dict(record),
        resumed=resumed,
    )
