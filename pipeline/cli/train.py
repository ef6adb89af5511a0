"""`scenemask train` and `export`: from labelled scenes to a model folder, and from that to other formats."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import with_common_options

if TYPE_CHECKING:
    from pipeline.train import TrainEvent

_LINE_EVERY_S = 10.0


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Model folder.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there, and begin anew.")
@with_common_options
def train(
    config: Path,
    changes: tuple[str, ...],
    *,
    out: Path,
    overwrite: bool,
    verbose: int,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Train a U-Net on labelled scenes, as CONFIG says, into a model folder.

    CONFIG is a YAML file (configs/train/full.yaml explains every key); single entries can be changed here, such as
    schedule.steps=500 or scenes.0.labels=fields.gpkg. The same command again goes on where it was cut off.
    """
    del debug
    from pipeline.cli.show import show_training
    from pipeline.run.stop import stop_on_signals
    from pipeline.train import read_train_settings, train_model

    settings = read_train_settings(config, changes)
    with stop_on_signals() as flag:
        result = train_model(
            settings,
            out,
            overwrite=overwrite,
            listener=_Watcher(quiet=quiet or as_json, verbose=verbose),
            stop=lambda: flag.raise_if_set("a checkpoint was written"),
        )
    if as_json:
        click.echo(json.dumps({"out": str(result.folder), **result.training}, indent=1, ensure_ascii=False))
    elif not quiet:
        show_training(result)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--to", "kind", required=True, type=click.Choice(["onnx", "pt2"]), help="Format of the network.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="New model folder.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@with_common_options
def export(
    model: Path,
    *,
    kind: str,
    out: Path,
    overwrite: bool,
    verbose: int,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Write MODEL in another format, checked against the original."""
    del verbose, debug
    from pipeline.model.export import export_model

    made = export_model(model, out, kind="onnx" if kind == "onnx" else "pt2", overwrite=overwrite)
    if as_json:
        click.echo(json.dumps({"out": str(out), "file": made.file.name, "max_difference": made.max_difference}))
    elif not quiet:
        click.echo(f"{made.file} : probabilities differ by {made.max_difference:.1e} at most")


class _Watcher:
    """A line at each look at the validation part, and now and then between; a bar would hide how the loss went."""

    def __init__(self, *, quiet: bool, verbose: int) -> None:
        self._quiet, self._every_s = quiet, 0.0 if verbose else _LINE_EVERY_S
        self._started = self._last = time.monotonic()
        self._loss: float | None = None
        self._first_frac: float | None = None

    def __call__(self, event: TrainEvent) -> None:
        from pipeline.train import Checked, Note, StepDone

        if self._quiet:
            return
        if isinstance(event, Note):
            self._say(f"note: {event.text}")
        elif isinstance(event, Checked):
            score = "" if event.mean_iou is None else f"  validation IoU {event.mean_iou:.3f}"
            self._say(f"step {event.step}  loss {event.loss:.3f}{score}{'  best so far' if event.best else ''}")
        elif isinstance(event, StepDone):
            self._step(event)

    def _step(self, event: Any) -> None:
        self._loss = event.loss if self._loss is None else 0.95 * self._loss + 0.05 * event.loss
        if self._first_frac is None:
            self._first_frac, self._started = event.done_frac, time.monotonic()
        now = time.monotonic()
        if now - self._last < self._every_s:
            return
        gone = event.done_frac - self._first_frac
        left = f"  eta {(now - self._started) / gone * (1 - event.done_frac):.0f} s" if gone > 0 else ""
        self._say(f"  {event.step}/{event.steps}  loss {self._loss:.3f}{left}")

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)
