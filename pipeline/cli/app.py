"""The command line: parses, calls one library function, reports. Heavy imports wait until a command runs."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import __version__
from pipeline.cli.batch import batch
from pipeline.cli.evaluate import evaluate
from pipeline.cli.options import (
    Place,
    SceneCommand,
    SettingsCommand,
    config_option,
    given_settings,
    model_option,
    with_common_options,
    with_servers,
)
from pipeline.cli.train import export, train
from pipeline.errors import InfrastructureError, Interrupted, PipelineError, UsageError, require_utf8
from pipeline.redact import redact

if TYPE_CHECKING:
    import types
    from collections.abc import Iterator


def _one_or_all(_context: click.Context, _parameter: click.Parameter, given: tuple[Any, ...]) -> Any:
    """One alone is itself."""
    return given if len(given) > 1 else given[0]


_SCENE = click.argument(
    "scene",
    type=Place(),
    nargs=-1,
    required=True,
    metavar="SCENE...",
    callback=_one_or_all,
)
_OUT_DIR = click.argument("out", type=Place())


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, invoke_without_command=True
)
@click.version_option(__version__, prog_name="scenemask")
@click.pass_context
def app(context: click.Context) -> None:
    """Segment whole satellite and aerial scenes: one georeferenced mask, seam-free polygons."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        sys.exit(UsageError.exit_code)


app.add_command(batch)
app.add_command(train)
app.add_command(export)
app.add_command(evaluate)


@app.command(cls=SettingsCommand)
@_SCENE
@model_option
@click.option("-o", "--out", required=True, type=Place(), help="Output folder, or s3://bucket/prefix.")
@click.option("--overwrite", is_flag=True, help="Replace results that are there, in one step at the end.")
@config_option
@with_common_options
def segment(
    scene: Path | str | tuple[Path | str, ...],
    model: Path,
    out: Path | str,
    *,
    overwrite: bool,
    config: Path | None,
    verbose: int,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Segment SCENE into a georeferenced mask and polygons: a raster, a STAC item, a folder or archive of a product.

    Several rasters side by side are one scene; `batch` takes them one by one.
    The same command again resumes a run that was cut off, and returns at once when all is done.
    """
    del debug
    from pipeline.cli.progress import run_listener
    from pipeline.cli.show import show_run
    from pipeline.run.segment import segment as run_segment

    given = given_settings(settings, config)
    with run_listener(quiet=quiet or as_json, verbose=verbose) as listener:
        result = run_segment(scene, model, out, overwrite=overwrite, listener=listener, **given)
    with _reader_may_leave():
        if as_json:
            click.echo(json.dumps(result.summary, indent=1, ensure_ascii=False))
        elif not quiet:
            show_run(result)


@app.command(cls=SettingsCommand)
@_SCENE
@model_option
@config_option
@with_common_options
def plan(
    scene: Path | str | tuple[Path | str, ...],
    model: Path,
    *,
    config: Path | None,
    verbose: int,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Show what `segment` would do with SCENE, without doing it."""
    del verbose, quiet, debug
    from pipeline.cli.show import show_plan
    from pipeline.run.preview_plan import plan as make

    summary = make(scene, model, **given_settings(settings, config)).summary()
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        show_plan(summary)


@app.command(cls=SceneCommand)
@click.argument("target", type=Place(), nargs=-1, required=True, metavar="SCENE...|MODEL", callback=_one_or_all)
@click.option("-m", "--model", type=click.Path(path_type=Path), help="Show the bands and values that it would get.")
@click.option("--write", is_flag=True, help="Write what was measured of a model into its model.json.")
@with_common_options
def inspect(
    target: Path | str | tuple[Path | str, ...],
    *,
    model: Path | None,
    write: bool,
    verbose: int,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Show what `segment` would read of a scene (bands, CRS, grid, valid area), or what a model does (stride, halo)."""
    del verbose, quiet, debug
    from pipeline.cli.show import show_facts
    from pipeline.run.inspect import inspect_target

    facts = inspect_target(target, model=model, write=write, **given_settings(settings, None))
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False, default=str))
    else:
        show_facts(facts)


@app.command()
@click.argument("masks", nargs=-1, required=True, type=Place(), metavar="MASK...")
@click.option("-o", "--out", required=True, type=Place(), help=".geojson, .gpkg, .fgb or .parquet")
@click.option("--only", metavar="CLASS,…", help="Classes by name or number; all but the background if not given.")
@click.option("--min-area", metavar="M2", help='Smallest polygon, such as "500 m2" or "12 px".')
@click.option("--fill-holes", metavar="M2", help="Fill smaller holes; what lies inside them goes.")
@click.option("--connectivity", type=click.Choice(["4", "8"]), default="4", help="8: corners join.  [default: 4]")
@click.option("--sieve", is_flag=True, help="Give smaller ones to their neighbours instead of leaving holes.")
@click.option("--smooth", is_flag=True, help="Make straight diagonals of staircases, without gaps or overlaps.")
@click.option("--simplify", metavar="M", help='Simplify without gaps or overlaps: metres, or such as "1 px".')
@click.option("--probabilities", type=Place(), help="probabilities.tif of the same run, as attributes.")
@click.option("--regularize", metavar="CLASS,…", help="Straight walls and right angles for classes such as buildings.")
@click.option(
    "--min-iou",
    type=click.FloatRange(0, 1),
    default=0.8,
    help="Least overlap with what was traced, else the outline stays.  [default: 0.8]",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes that trace.  [default: 1]")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@with_servers
@with_common_options
def vectorize(
    masks: tuple[Path | str, ...],
    out: Path | str,
    *,
    only: str | None,
    min_area: str | None,
    fill_holes: str | None,
    connectivity: str,
    sieve: bool,
    smooth: bool,
    simplify: str | None,
    probabilities: Path | str | None,
    regularize: str | None,
    min_iou: float,
    workers: int,
    overwrite: bool,
    access: Any,
    verbose: int,
    quiet: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Turn a mask into polygons, the same as if it had been traced in one piece.

    Several masks of one grid and the same classes are traced as one: where they overlap, the first that has a class at
    a pixel gives it.
    """
    del verbose, debug
    from pipeline.run.vectorize import say_regularized, vectorize_to_file

    classes = None if only is None else [part.strip() for part in only.split(",") if part.strip()]
    written = vectorize_to_file(
        masks,
        out,
        only=classes,
        min_area=min_area,
        fill_holes=fill_holes,
        connectivity=8 if connectivity == "8" else 4,
        sieve=sieve,
        smooth=smooth,
        simplify=simplify,
        regularize=regularize or (),
        min_iou=min_iou,
        workers=workers,
        probabilities=probabilities,
        overwrite=overwrite,
        access=access,
    )
    outcome = written.regularized
    if as_json:
        click.echo(json.dumps({
            "path": str(out),
            "polygons": written.num_polygons,
            **({} if outcome is None else {"regularized": outcome._asdict()}),
        }))  # fmt: skip
    elif not quiet:
        click.echo(f"{written.num_polygons} polygons -> {out}")
        if outcome is not None:
            click.echo(say_regularized(outcome, min_iou))


@app.command()
@_OUT_DIR
@with_servers
@with_common_options
def status(out: Path | str, *, access: Any, verbose: int, quiet: bool, as_json: bool, debug: bool) -> None:
    """Show what the output folder OUT holds: how far a run has come, who is at it, and how to go on.

    Touches nothing. Exit code 0: complete; 75: unfinished, can be continued; 5: results of something else; 2: nothing.
    """
    del verbose, debug
    from pipeline.cli.show import show_status
    from pipeline.run.status import status_of

    found = status_of(out, access=access)
    with _reader_may_leave():
        if as_json:
            click.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        elif not quiet:
            show_status(out, found)
    sys.exit(found.exit_code)


@app.command()
@_OUT_DIR
@with_servers
@with_common_options
def verify(out: Path | str, *, access: Any, verbose: int, quiet: bool, as_json: bool, debug: bool) -> None:
    """Read back all that run.json in OUT describes: files by hash, mask and probabilities block by block.

    Exit code 0: as it was written; 5: damaged, and the damaged blocks are named.
    """
    del verbose, debug
    from pipeline.run.audit import audit

    found = audit(out, access=access)
    with _reader_may_leave():
        if as_json:
            click.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        elif found.whole and not quiet:
            click.echo(f"{len(found.files)} files, {sum(found.blocks.values())} blocks: all as they were written")
    if not found.whole:
        error = found.error(out)
        print(error.block(), file=sys.stderr)
        sys.exit(error.exit_code)


@app.command()
@with_common_options
def doctor(*, verbose: int, quiet: bool, as_json: bool, debug: bool) -> None:
    """Show versions, drivers, devices and disk: paste it into a question."""
    del verbose, quiet, debug
    from pipeline.cli.show import show_facts
    from pipeline.run.doctor import examine

    facts = examine()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        show_facts(facts)


@app.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("demo"), help="Folder.  [default: demo]")
@click.option("--size", type=click.IntRange(min=512), default=4096, help="Side of the scene, px.  [default: 4096]")
@click.option("--train", is_flag=True, help="Train the network anew, instead of taking the one that comes along.")
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Training steps; implies --train.")
@with_common_options
def demo(
    out: Path, *, size: int, train: bool, steps: int | None, verbose: int, quiet: bool, as_json: bool, debug: bool
) -> None:
    """Make a synthetic scene, segment it, and score the half that the network has not learnt from."""
    del debug
    from pipeline.cli.progress import run_listener
    from pipeline.cli.show import show_demo
    from pipeline.run.demo import run_demo

    with run_listener(quiet=quiet or as_json, verbose=verbose) as listener:
        result = run_demo(out, size_px=size, train=train, steps=steps, listener=listener)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=1))
    elif not quiet:
        show_demo(result)


def main() -> None:
    """Entry point: runs a command and turns every ending into its exit code."""
    # Reading and writing threads share the cores with the network's: those that wait must sleep, not spin. With a busy
    # neighbour the same forwards took 1.15 s of CPU in place of 2.06 s. PyTorch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _spare_what_stays()
    debug, as_json = "--debug" in sys.argv, "--json" in sys.argv
    sys.excepthook = _print_redacted
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries' notes to developers; ours are printed
    try:
        require_utf8(sys.argv[1:])
        with _stoppable_before_work():
            app(standalone_mode=False)
    except PipelineError as error:
        if debug:
            raise
        _report(error, as_json=as_json)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _report(_usage(error), as_json=as_json)
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, click.Abort) as stop:
        hint = str(stop) or str(stop.__cause__ or "") or "stopped"  # click wraps it
        print(f"\ninterrupted: {hint}; the same command continues:\n  {_command_given()}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `scenemask ... | head`
        _close_stdout()
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if debug:
            raise
        _report(_bug(error), as_json=as_json)
        sys.exit(1)
    sys.exit(0)


def _spare_what_stays() -> None:
    """Keep Python from looking for garbage among a million objects that imports make and that live until the end.

    With its defaults it looks through them a thousand times while they are made, and through all of them again when the
    process ends: 0.9 s of the 7.7 s that a scene of 2048² took.
    """
    gc.set_threshold(_NEW_OBJECTS)
    atexit.register(gc.freeze)


_NEW_OBJECTS = 50_000
"""After which garbage is looked for among them; Python's default is 700."""


@contextlib.contextmanager
def _stoppable_before_work() -> Iterator[None]:
    """What stops a job may come while imports are read from a slow disk; commands that can resume listen themselves."""

    def stop(number: int, _frame: types.FrameType | None) -> None:
        print(f"interrupted: stopped by {signal.Signals(number).name}; {_command_given()}", file=sys.stderr)
        sys.exit(Interrupted.exit_code)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """What is said of finished work may find nobody: `scenemask segment ... | head` has done it all the same."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()


def _close_stdout() -> None:
    """Nothing is left to be flushed into a closed pipe when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_redacted(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """A traceback without secrets: libraries put whole addresses into their messages."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def _report(error: PipelineError, *, as_json: bool) -> None:
    print(error.block(), file=sys.stderr)
    if isinstance(error, Interrupted | InfrastructureError):  # what is finished is kept
        print(f"continues with: {_command_given()}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": error.to_dict()}, indent=1))


def _command_given() -> str:
    """What was typed, to be typed again; secrets are left out."""
    return redact(shlex.join(["scenemask", *sys.argv[1:]]))


def _usage(error: click.ClickException) -> UsageError:
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "scenemask"
    return UsageError(
        error.format_message(), code="CF-007", title="Command line is wrong", fix=f"see `{command} --help`"
    )


def _bug(error: Exception) -> PipelineError:
    return PipelineError(
        f"{type(error).__name__}: {error}",
        code="BUG-001",
        title="Unexpected error, most likely a mistake in scenemask",
        fix="run again with --debug and report the traceback with the output of `scenemask doctor`",
    )
