"""One scene on its way: opened, planned or resumed, its tiles counted, its results committed."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import OutputError, PipelineError
from pipeline.infer import resolve_device
from pipeline.model import Model, load_model
from pipeline.run.events import Event, Listener, Notice, StageFinished, StageStarted
from pipeline.run.identity import adopt_settings, identity, refuse_differences
from pipeline.run.leftovers import clean_up
from pipeline.run.plan import Plan
from pipeline.run.record import class_rows, run_record
from pipeline.run.resolve import bare_options, matched_by_position, resolve_limits, resolve_scene
from pipeline.run.results import Recipe
from pipeline.run.scratch import (
    create_store,
    digest_of,
    from_record,
    ledger_of,
    new_place,
    open_store,
    require_room,
    shared_place,
    to_record,
)
from pipeline.run.settings import access_of
from pipeline.run.tile_task import Job
from pipeline.run.values import one_class_warning, range_warning
from pipeline.run.vectorize import cleaning_of
from pipeline.run.workers import on_this_machine, starts_workers
from pipeline.scene.rescale import RescaledScene
from pipeline.scene.sources import SourcesScene
from pipeline.store import (
    RunLock,
    TileRecords,
    TileStore,
    read_object,
    refuse_own_input,
    scan_ledger,
    to_bytes,
)
from pipeline.store.runfile import PLAN_FILE, refuse_changed, state_of
from pipeline.store.sealed import sealed, unsealed
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.grid import Tile, Window
    from pipeline.run.finish import Finished
    from pipeline.run.output import Delivery, Output
    from pipeline.run.settings import SegmentSettings
    from pipeline.run.share import Share
    from pipeline.run.stop import StopFlag
    from pipeline.run.verify import Verification
    from pipeline.scene import Limits, Scene
    from pipeline.store import OutputState, Place

_FORMAT_VERSION = 4
"""Of plan.json and run.json; raised when an older one can no longer be resumed."""


@dataclass(slots=True, kw_only=True)
class SceneRun:
    """What was resolved of a scene, its model and its settings, and what has been measured so far."""

    scene: Scene
    model: Model
    settings: SegmentSettings
    explicit: set[str]
    limits: Limits
    identity: dict[str, Any]
    out_dir: Path
    home: Place
    """Where its plan lies while it is unfinished."""
    listener: Listener
    model_stays: bool = False
    """Whether the model was handed over by someone who may go on with it, so that it pays to keep it ready."""
    range_warning: str | None = None
    """What was found of its values; None before they were looked at, empty where they are as expected."""
    started: float = field(default_factory=time.time)
    timings: dict[str, float] = field(default_factory=dict)

    def tell(self, event: Event) -> None:
        """Pass on an event; keeps how long stages took."""
        if isinstance(event, StageStarted | StageFinished):
            reached(f"{'begin' if isinstance(event, StageStarted) else 'end'}-{event.name}")
        if isinstance(event, StageFinished):
            self.timings[event.name] = round(event.seconds, 3)
        self.listener(event)


@dataclass(slots=True, kw_only=True)
class Ongoing:
    """A run whose plan is frozen: what is done, what is left."""

    run: SceneRun
    plan: Plan
    store: TileStore
    scratch: Path
    records: TileRecords = field(init=False)
    """Tile -> its record."""
    attempts: Mapping[int, int] = field(default_factory=dict)
    """Tile -> attempts so far."""

    def __post_init__(self) -> None:
        self.records = self._no_records()

    def _no_records(self) -> TileRecords:
        plan = self.plan
        return TileRecords(plan_id=plan.digest, num_tiles=plan.tiling.num_tiles, num_classes=plan.num_classes)

    @property
    def ledger(self) -> Place:
        """Where its tiles are recorded."""
        return ledger_of(self.store.place, self.scratch)

    def job(self) -> Job:
        """The recipe of its tiles."""
        return Job(
            key=f"{self.plan.digest}-{self.scratch.parent.name}-{time.monotonic_ns():x}",
            scene=self.run.scene,
            plan=self.plan,
            limits=self.run.limits,
            store=self.store,
            ledger=self.ledger,
            store_id=self._store_id(),
            own_cluster=starts_workers(self.run.settings),
        )

    def recipe(self, delivery: Delivery | None = None) -> Recipe:
        """Of its files, once all tiles are recorded.

        Args:
            delivery: For a worker that sends them itself.
        """
        return Recipe(
            scene=self.run.scene,
            settings=self.run.settings,
            plan=self.plan,
            limits=self.run.limits,
            store=self.store,
            records=self.records,
            out_dir=self.run.out_dir,
            scratch=self.scratch,
            store_id=self._store_id(),
            delivery=delivery,
        )

    def _store_id(self) -> str | None:
        return None if on_this_machine(self.run.settings) else self.store.identity

    def read_ledger(self, stop: StopFlag, *, share: Share | None = None) -> list[Tile]:
        """Tiles, of a share if one is given, that the ledger does not have, or with pixels that are no longer there."""
        tiles = self.plan.tiling.tiles()
        tiles = tiles if share is None else share.of(tiles)
        mine = {tile.index for tile in tiles}
        scan = scan_ledger(self.ledger, plan_id=self.plan.digest)
        self.records, self.attempts = self._no_records(), scan.attempts
        self.records.update((index, record) for index, record in scan.records.items() if index in mine)
        digests = {index: digest_of(record) for index, record in self.records.items()}
        damaged = self.store.find_damaged(_until(stop, tiles), digests)
        for index in damaged:
            del self.records[index]
        if damaged:
            text = f"{len(damaged)} finished tiles are damaged on disk and are computed again"
            self.run.tell(Notice(text=text))
        return [tile for tile in tiles if tile.index not in self.records]


def prepare(
    scene: Any,
    model: Model | str | Path,
    given: SegmentSettings,
    state: OutputState,
    *,
    output: Output,
    overwrite: bool,
    listener: Listener,
) -> SceneRun:
    """Scene, model and settings opened, those of the run that is there adopted where they were not given.

    They decide how scene and model are opened, so they are adopted before that. With `overwrite`, a run that differs
    is not continued but replaced by one with the settings given.
    """
    adopted = adopt_settings(given, _recorded(state, overwrite=overwrite))
    try:
        run = _open(scene, model, adopted, given.model_fields_set, output=output, listener=listener)
        if overwrite and state.plan is not None:
            before: Any = state.plan["identity"]
            refuse_differences(before, run.identity, explicit=run.explicit, where=output.place)
    except PipelineError:
        if not overwrite:
            raise
        return _open(scene, model, given, given.model_fields_set, output=output, listener=listener)
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
    output: Output,
    listener: Listener,
) -> SceneRun:
    inputs = [("scene", place) for place in given_places(scene)]
    inputs += [("model", model), ("area of interest", settings.aoi), ("mask layer", settings.mask_layer)]
    for kind, path in inputs:
        if isinstance(path, str | Path):
            refuse_own_input(output.folder, kind, Path(path))
    model_stays = isinstance(model, Model)
    if not isinstance(model, Model):
        model = load_model(model, bare=bare_options(settings), trust_model=settings.trust_model)
    opened = resolve_scene(scene, model, settings)
    cleaning_of(settings, model.spec.legend())  # classes that it does not have are refused before the work
    limits = resolve_limits(opened, settings)
    return SceneRun(
        scene=opened,
        model=model,
        settings=settings,
        explicit=explicit,
        limits=limits,
        identity=identity(opened, model, settings, limits=limits),
        out_dir=output.folder,
        home=output.home,
        listener=listener,
        model_stays=model_stays,
    )


def adopt(run: SceneRun, scratch: Path, *, overwrite: bool, alone: bool = True) -> Ongoing | None:
    """The unfinished run that lies there, continued under its frozen plan; None where a new one is to begin.

    Args:
        run: What was asked for.
        scratch: The run's private folder.
        overwrite: Begin anew where it differs.
        alone: Whether nobody else computes tiles of it, so that half-written ones are leftovers.

    Raises:
        OutputError: OU-011, it was begun with something else; OU-017, its plan was changed.
    """
    state = state_of(None, read_object(run.home, PLAN_FILE), tuple)
    if not overwrite:
        refuse_changed(run.out_dir, state)
    document = state.plan
    if document is None:
        return None
    if document.get("format") == _FORMAT_VERSION:
        try:
            return _adopted(run, dict(document), scratch, alone=alone)
        except OutputError:
            if not overwrite:
                raise
    elif not overwrite:
        raise OutputError(
            f"the unfinished run has format {document.get('format')}, this version writes {_FORMAT_VERSION}",
            code="OU-011",
            title="Run does not match the output",
            where=str(run.out_dir),
            fix="finish it with the version that began it, or add --overwrite",
        )
    return None


def begin(run: SceneRun, plan: Plan, scratch: Path) -> Ongoing:
    """A new run: the frozen plan kept, and an empty store; a run that lies there is removed."""
    replaced = unsealed(read_object(run.home, PLAN_FILE))
    if replaced is not None:
        from_record(replaced.get("store"), scratch, access_of(run.settings)).remove()
    for leftover in ("store", "ledger"):  # what is staged is cleared before it is used
        shutil.rmtree(scratch / leftover, ignore_errors=True)
    store = _new_store(run, plan, new_place(scratch, shared_place(run.settings)), scratch)
    return Ongoing(run=run, plan=plan, store=store, scratch=scratch)


def _new_store(run: SceneRun, plan: Plan, place: Place, scratch: Path) -> TileStore:
    """The plan first: at no moment is there a store that no plan tells of."""
    legend = run.model.spec.legend()
    require_room(place, out_dir=run.out_dir, plan=plan, legend=legend)
    begins = not run.home.has(PLAN_FILE)
    document = {
        "format": _FORMAT_VERSION,
        "identity": run.identity,
        "settings": run.settings.model_dump(mode="json"),
        "plan": plan.to_json(),
        "store": to_record(place, scratch),
        "inputs": {"scene": _places_of(run.scene), "model": _path_of(run.model)},
    }
    run.home.write(PLAN_FILE, to_bytes(sealed(document)))
    try:
        return create_store(place, plan=plan, legend=legend)
    except PipelineError:
        if begins:  # refused, not cut off
            run.home.delete(PLAN_FILE)
        raise


def given_places(scene: Any) -> list[Any]:
    """What was given as a scene, one by one; of what is open its path."""
    return list(scene) if isinstance(scene, list | tuple) else [getattr(scene, "path", scene)]


def _places_of(scene: Scene) -> str | list[str] | None:
    """Its path; of files that were given side by side all of them; None where one of these has none."""
    inner = scene.scene if isinstance(scene, RescaledScene) else scene
    if not isinstance(inner, SourcesScene) or inner.path is not None:
        return _path_of(scene)
    places = [_path_of(part.scene) for part in inner.parts]
    return None if None in places else [str(place) for place in places]


def _path_of(what: Scene | Model) -> str | None:
    """Where it lies, for the command that `status` tells; of an address not what may be a signature."""
    path = getattr(what, "path", None)
    if path is None or "://" in str(path):
        return None if path is None else str(path).partition("?")[0]
    return str(Path(path).absolute())


def _adopted(run: SceneRun, document: dict[str, Any], scratch: Path, *, alone: bool) -> Ongoing:
    refuse_differences(document["identity"], run.identity, explicit=run.explicit, where=run.out_dir)
    plan = Plan.from_json(document["plan"])
    if plan.engine.device == "cuda" and on_this_machine(run.settings):
        resolve_device("cuda")
    place = from_record(document["store"], scratch, access_of(run.settings))
    store = open_store(place, plan)
    if store is None and not alone:
        raise OutputError(
            f"the tiles of this scene lie in {place}, which is not there on this machine",
            code="BA-006",
            title="Shared tiles are not seen",
            where=str(run.out_dir),
            fix="leave --scratch out, or give a disk that all machines see, when tiles are shared out",
        )
    if store is None:
        ledger, shared = ledger_of(place, scratch), shared_place(run.settings)
        if next(ledger.read_all(".jsonl"), None) is not None:
            run.tell(Notice(text=f"the finished tiles in {place} are gone; all tiles are computed again"))
        ledger.remove()
        place.remove()
        place = place if shared is None else new_place(scratch, shared)
        store = _new_store(run, plan, place, scratch)
    if alone:
        store.remove_partials()
    return Ongoing(run=run, plan=plan, store=store, scratch=scratch)


def warnings_of(run: SceneRun, plan: Plan) -> list[str]:
    """What a person should know before trusting the result; told, and kept in run.json."""
    if run.range_warning is None:
        run.range_warning = range_warning(run.scene, run.model) or ""
    warnings = [*run.scene.warnings, *filter(None, [run.range_warning]), *run.limits.warnings, *run.model.warnings]
    if run.settings.bands is None and matched_by_position(run.scene, run.model):
        names = ", ".join(f"{b.name} → {n}" for b, n in zip(run.scene.bands, run.model.spec.bands, strict=True))
        warnings.append(f"bands were matched by position: {names}")
    return [*warnings, *plan.warnings]


def commit(
    ongoing: Ongoing,
    finished: Finished,
    verified: Verification | None,
    move: Callable[[Sequence[str], Mapping[str, object]], None],
    lock: RunLock,
) -> dict[str, Any]:
    """Move the results into place, run.json last, and remove what only an unfinished run needs.

    Args:
        ongoing: The run.
        finished: Its results.
        verified: What was compared.
        move: `commit` of where they are staged.
        lock: Held.

    Returns:
        Content of run.json.

    Raises:
        OutputError: OU-013, the scene changed meanwhile; OU-003, the lock was taken over.
    """
    run = ongoing.run
    _refuse_changed_scene(run)
    lock.ensure_held()
    doubt = one_class_warning(run.model, [row["pixels"] for row in class_rows(run.model, finished)])
    if doubt is not None:
        run.tell(Notice(text=doubt))
    record = run_record(
        identity=run.identity,
        settings=run.settings,
        plan=ongoing.plan,
        model=run.model,
        scene=run.scene,
        warnings=[*warnings_of(run, ongoing.plan), *filter(None, [doubt])],
        records=list(ongoing.records.values()),
        finished=finished,
        verified=verified,
        timings=run.timings,
        started=run.started,
    )
    move(finished.names, record)
    clean_up(ongoing.scratch, ongoing.store.place, lock, home=run.home, keep=run.settings.keep)
    return record


def _until(stop: StopFlag, tiles: Sequence[Tile]) -> Iterator[Window]:
    """Cores of the tiles, until a signal comes: looking through a large store takes its time."""
    for tile in tiles:
        stop.raise_if_set("all finished tiles are kept")
        yield tile.core


def _refuse_changed_scene(run: SceneRun) -> None:
    if run.scene.fingerprint() != run.identity["scene"]:
        raise _changed("scene", run.scene.name)
    layer = run.limits.layer
    if layer is not None and layer.digest() != run.identity["settings"]["mask_layer"]:
        raise _changed("mask layer", layer.placed.name)


def _changed(what: str, where: str) -> OutputError:
    return OutputError(
        f"the {what} changed while the scene was being segmented",
        code="OU-013",
        title=f"{what.capitalize()} changed during the run",
        where=where,
        fix="run again with --overwrite once the file no longer changes",
    )
