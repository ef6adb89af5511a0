"""From settings to a model folder: look at the data, train, judge, write. The one function behind `scenemask train`."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.model import MODEL_FILE, ModelSpec, Scaling, folder_taken, publish_model
from pipeline.scene.regrid import pixel_size_m
from pipeline.store.files import atomic_write_bytes, atomic_write_json, private_folder
from pipeline.store.lock import RunLock
from pipeline.train.check import accuracy_of, count_on
from pipeline.train.checkpoint import SETTINGS_FILE, forget_checkpoints, has_checkpoints, require_same_settings
from pipeline.train.chips import ChipPlaces
from pipeline.train.data import open_views
from pipeline.train.events import Note, TrainListener, silent
from pipeline.train.loader import BatchMaker
from pipeline.train.loop import settings_of, train
from pipeline.train.networks import make_network, save_trained
from pipeline.train.pictures import draw_curves, draw_example, write_curves
from pipeline.train.settings import to_yaml
from pipeline.train.split import make_split
from pipeline.train.survey import survey, warnings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from pipeline.train.checkpoint import Progress
    from pipeline.train.data import LabelledView
    from pipeline.train.loop import Trained
    from pipeline.train.settings import TrainSettings
    from pipeline.train.split import Area, Split
    from pipeline.train.survey import Survey

_WORK = ".training"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What training made."""

    folder: Path
    """The model folder."""
    training: dict[str, Any]
    """As kept in `model.json`: steps, time, data, accuracy by part."""


def train_model(
    settings: TrainSettings,
    out: Path,
    *,
    overwrite: bool = False,
    listener: TrainListener = silent,
    stop: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Train a U-Net and write it as a model folder; the same call again goes on where it was cut off.

    Args:
        settings: What to learn from, and how.
        out: Model folder, made if it does not exist. While training is unfinished it holds `.training`.
        overwrite: Replace a model that is there, and begin anew.
        listener: Hears of steps and looks.
        stop: Called between steps; raises when training is to stop.

    Raises:
        InputError: Scenes or labels cannot be used (IN-, TR-001 to TR-014).
        ModelError: TR-020 the loss is no number; TR-021 the model to start from does not fit.
        OutputError: OU-040 begun with other settings, OU-041 another model is there, OU-002 somebody trains there.
    """
    private_folder(out)
    work = out / _WORK
    if not overwrite and not has_checkpoints(work) and (done := _finished(settings, out)) is not None:
        return done
    lock = RunLock(work)
    lock.acquire()
    try:
        if overwrite:
            forget_checkpoints(work)
        require_same_settings(work, settings_of(settings))
        atomic_write_json(work / SETTINGS_FILE, settings_of(settings))
        training = _train(settings, work, listener, stop)
        publish_model(work / "made", out)
    except BaseException:
        lock.release()
        if not has_checkpoints(work):
            shutil.rmtree(work, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty
                out.rmdir()
        raise
    lock.release()
    shutil.rmtree(work, ignore_errors=True)
    return TrainResult(folder=out, training=training)


def _train(settings: TrainSettings, work: Path, listener: TrainListener, stop: Callable[[], None]) -> dict[str, Any]:
    views = open_views(settings)
    num_classes = len(settings.class_names)
    split = make_split(views, settings.split, num_classes=num_classes)
    found = survey(views, split, num_classes=num_classes)
    for text in (*warnings_of(found, settings.legend), *_scene_warnings(views)):
        listener(Note(text=text))
    scaling = _scaling(found)
    network = make_network(settings.network, bands=len(found.mean), outputs=num_classes, seed=settings.seed)
    batches = BatchMaker(
        views, ChipPlaces(split["train"], found.places, settings.chips, settings.seed), scaling, settings
    )
    made = work / "made"
    made.mkdir(exist_ok=True)
    shown = (split["val"] or split["train"])[0]

    def on_check(network: nn.Module, progress: Progress) -> None:
        write_curves(made / "training.csv", progress, settings.class_names)
        draw_curves(made / "training.png", progress, settings.class_names)
        draw_example(made / "example.png", network, views[shown.view], shown.window, scaling, settings)

    trained = train(
        network,
        batches,
        found,
        split["val"],
        work,
        listener=listener,
        on_check=_with_board(on_check, settings, work.parent),
        stop=stop,
    )
    draw_example(made / "example.png", trained.network, views[shown.view], shown.window, scaling, settings)
    training = _record(settings, views, split, found, trained, scaling)
    stride = settings.network.stride
    save_trained(made, trained.network, _spec(settings, views, scaling), training, stride=stride)
    atomic_write_bytes(made / "config.yaml", to_yaml(settings).encode())
    return training


def _scaling(found: Survey) -> Scaling:
    bands = len(found.mean)
    return Scaling(scale=(1.0,) * bands, offset=(0.0,) * bands, mean=found.mean, std=found.std)


def _spec(settings: TrainSettings, views: Sequence[LabelledView], scaling: Scaling) -> ModelSpec:
    legend = settings.legend
    return ModelSpec(
        name=settings.name,
        bands=tuple(band.name for band in views[0].scene.bands),
        classes=settings.class_names,
        colors=tuple(info.color for info in legend),
        background=next((info.name for info in legend if info.background), None),
        scaling=scaling,
        gsd_m=pixel_size_m(views[0].geobox),
    )


def _record(
    settings: TrainSettings,
    views: Sequence[LabelledView],
    split: Split,
    found: Survey,
    trained: Trained,
    scaling: Scaling,
) -> dict[str, Any]:
    """What the card keeps: enough to know what the model is worth, and to make it again."""
    progress = trained.progress

    def judged(areas: Sequence[Area]) -> dict[str, Any] | None:
        if not areas:
            return None
        counts = count_on(
            trained.network, views, areas, scaling, num_classes=len(settings.class_names),
            stride=settings.network.stride,
        )  # fmt: skip
        return accuracy_of(counts, settings.class_names)

    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "seconds": round(progress.elapsed_s, 1),
        "precision": "bfloat16" if trained.autocast is not None else "float32",
        "skipped_steps": progress.skipped,
        "accuracy": {"val": judged(split["val"]), "test": judged(split["test"])},
        "data": {
            "scenes": [_scene_record(view) for view in views],
            "provenance": settings.provenance,
            **found.to_dict(settings.legend),
        },
        "description": settings.description,
        "licence": settings.licence,
        "versions": {"scenemask": __version__, "torch": version("torch")},
        "settings": settings_of(settings),
    }


def _scene_record(view: LabelledView) -> dict[str, Any]:
    """Which scene it was: what stays the same when its file is copied."""
    found = view.scene.fingerprint()
    return {"scene": view.name, **{key: found[key] for key in ("file", "size", "digest") if key in found}}


def _finished(settings: TrainSettings, out: Path) -> TrainResult | None:
    """The result of an earlier call with these settings; None when there is none yet.

    Raises:
        OutputError: OU-041, another model is there.
    """
    if not (out / MODEL_FILE).exists():
        return None
    training = json.loads((out / MODEL_FILE).read_text())["properties"].get("scenemask:training", {})
    if training.get("settings") == json.loads(json.dumps(settings_of(settings))):
        return TrainResult(folder=out, training=training)
    raise folder_taken(out)


def _scene_warnings(views: Sequence[LabelledView]) -> list[str]:
    texts = [f"{view.name}: {text}" for view in views for text in view.scene.warnings]
    scales = {tuple((b.scale, b.offset) for b in view.scene.bands) for view in views}
    if len(scales) > 1:
        texts.append("the scenes' own scale and offset tags differ; stored values are learnt from as they are")
    return texts


def _with_board(
    on_check: Callable[[nn.Module, Progress], None], settings: TrainSettings, out: Path
) -> Callable[[nn.Module, Progress], None]:
    """Curves for TensorBoard as well, where asked for."""
    if not settings.tensorboard:
        return on_check
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional package

    board = SummaryWriter(str(out / "tensorboard"))

    def both(network: nn.Module, progress: Progress) -> None:
        on_check(network, progress)
        every = settings.schedule.check_every
        board.add_scalar("loss", sum(progress.losses[-every:]) / every, progress.step)
        if progress.checks[-1]["mean_iou"] is not None:
            board.add_scalar("val/mean_iou", progress.checks[-1]["mean_iou"], progress.step)
        board.flush()

    return both
