"""`scenemask evaluate`: a mask against the truth."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import with_common_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("pred", type=_FILE)
@click.argument("truth", type=_FILE)
@click.option("-o", "--out", type=_FILE, help="Report, such as report.json.")
@click.option("--classes", metavar="N=NAME,…", help="PRED's classes, where it does not name them.")
@click.option("--recode", metavar="T=P,…", help="TRUTH's classes in PRED's: \"4=cloud,9=ignore,*=clear\".")
@click.option("--ignore", metavar="CLASS,…", default="", help="Classes of TRUTH that are left out.")
@click.option("--attribute", metavar="NAME", help="Attribute of polygons or points that holds the class.")
@click.option("--layer", metavar="NAME", help="Layer of a file with several.")
@click.option("--outside", metavar="CLASS", help="Class outside all polygons, or `ignore`.  [default: the background]")
@click.option("--sample", is_flag=True, help="TRUTH is a sample of points or polygons: area-weighted estimates.")
@click.option(
    "--stratum", metavar="NAME", help="Attribute of a sample that holds its stratum.  [default: PRED's class]"
)
@click.option("--strata", type=_FILE, help="Raster of the strata, where they are not PRED's classes.")
@click.option("--boundary", metavar="DIST", help='Boundary IoU and F1 at a tolerance: "2 px", "5 m".')
@click.option("--objects", metavar="CLASS,…", default="", help="Match connected regions of these classes.")
@click.option(
    "--seam",
    "seam_px",
    metavar="PX",
    type=click.IntRange(min=0),
    default=16,
    help="Reach of a seam between patches, 0: none.  [default: 16]",
)
@click.option("--probabilities", metavar="FILE", default="auto", help="For calibration; `none`.  [default: PRED's own]")
@click.option(
    "--bootstrap", metavar="N", type=click.IntRange(min=0), default=0, help="Intervals from N draws of blocks."
)
@click.option("--block-px", metavar="PX", type=click.IntRange(min=1), help="Side of a block.")
@click.option("--block-m", metavar="M", type=click.FloatRange(min=0, min_open=True), help="Side of a block in metres.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the bootstrap.  [default: 0]")
@click.option("--plots", metavar="DIR", help="Where PNG plots go, `none`.  [default: beside the report]")
@click.option("--overwrite", is_flag=True, help="Replace the report if it is there.")
@with_common_options
def evaluate(
    pred: Path,
    truth: Path,
    *,
    out: Path | None,
    plots: str | None,
    block_px: int | None,
    block_m: float | None,
    overwrite: bool,
    verbose: int,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Compare the mask PRED with TRUTH: a raster, polygons, or (--sample) a sample of known strata.

    Pixels where either has no class are left out, and counted. Every number is defined in docs/evaluation.md.
    """
    del verbose, debug
    from pipeline.cli.show_evaluation import show_evaluation
    from pipeline.train.evaluate.compare import evaluate as compare
    from pipeline.train.evaluate.write import Destination, write_evaluation

    if block_px is not None and block_m is not None:
        msg = "--block-px and --block-m exclude each other"
        raise click.UsageError(msg)
    block = f"{block_px} px" if block_px is not None else None if block_m is None else f"{block_m} m"
    place = Destination(report=out, plots=plots, overwrite=overwrite)
    place.check()
    with _progress(quiet=quiet or as_json) as progress:
        found = compare(pred, truth, block=block, progress=progress, **options)
    written = write_evaluation(found, place)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    elif not quiet:
        show_evaluation(found, written)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("comparing", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
