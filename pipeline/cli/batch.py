"""`scenemask batch`: many scenes on one cluster, or as jobs of SLURM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import (
    Place,
    SettingsCommand,
    config_option,
    given_settings,
    model_option,
    with_common_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.run.batch import Split


@click.command(cls=SettingsCommand)
@click.argument("scenes", nargs=-1)
@click.option(
    "--list",
    "lists",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File that lists scenes: .txt, .csv, .parquet (column `scene`, and `name` if wanted) or STAC items (.json).",
)
@click.option("--asset", metavar="KEY", help="Asset of STAC items, where they have several rasters.")
@model_option
@click.option("-o", "--out", required=True, type=Place(), help="Root of the output folders, or s3://bucket/prefix.")
@click.option("--max-failures", type=click.IntRange(min=0), metavar="N", help="Begin no more once more have failed.")
@click.option("--retry-failed", is_flag=True, help="Try scenes again that have failed for good.")
@click.option("--share", metavar="I/N", help="Only the I-th of N equal parts, counted from 0.")
@click.option(
    "--split",
    type=click.Choice(["scenes", "tiles"]),
    help="What --share and --array divide: scenes, or the tiles of each, whose files a run without --share then makes. "
    "[default: scenes; with --array tiles where there are fewer scenes than tasks]",
)
@click.option("--array", type=click.IntRange(min=1), metavar="N", help="Submit N tasks to SLURM instead of computing.")
@click.option("--sbatch", metavar="OPTIONS", default="", help='For --array, such as "--partition=gpu --gres=gpu:1".')
@click.option("--dry-run", is_flag=True, help="With --array: write the job scripts, submit nothing.")
@config_option
@with_common_options
def batch(
    scenes: tuple[str, ...],
    lists: tuple[Path, ...],
    asset: str | None,
    model: Path,
    out: Path | str,
    *,
    max_failures: int | None,
    retry_failed: bool,
    share: str | None,
    split: Split | None,
    array: int | None,
    sbatch: str,
    dry_run: bool,
    config: Path | None,
    verbose: int,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Segment many SCENES on one cluster, each into a folder of its own: paths, patterns in quotes, lists.

    The same command again continues; scenes that have failed for good are left out unless asked for. Without scenes it
    continues with the list of before. Ends with 6 where scenes failed.
    """
    del debug
    from pipeline.cli.batch_progress import batch_listener
    from pipeline.cli.show import show_batch, show_submitted
    from pipeline.run.array import submit_array
    from pipeline.run.batch import batch as run_batch
    from pipeline.run.share import Share

    given = given_settings(settings, config)
    if array is None and (sbatch or dry_run):
        raise click.UsageError("--sbatch and --dry-run belong to --array")
    if array is not None and share is not None:
        raise click.UsageError("--array gives each task its --share; leave that out")
    chosen: dict[str, Any] = {
        "lists": lists,
        "asset": asset,
        "max_failures": max_failures,
        "retry_failed": retry_failed,
        **given,
    }
    if array is not None:
        submitted = submit_array(
            scenes, model, out, tasks=array, split=split, sbatch_options=sbatch, dry_run=dry_run, **chosen
        )
        _answer(submitted.to_dict(), lambda: show_submitted(submitted), quiet=quiet, as_json=as_json)
        return
    part = None if share is None else Share.parse(share)
    with batch_listener(quiet=quiet or as_json, verbose=verbose) as listener:
        result = run_batch(scenes, model, out, share=part, split=split or "scenes", listener=listener, **chosen)
    _answer(result.to_dict(), lambda: show_batch(result), quiet=quiet, as_json=as_json)
    if result.exit_code:
        sys.exit(result.exit_code)


def _answer(document: dict[str, Any], show: Callable[[], None], *, quiet: bool, as_json: bool) -> None:
    """What is said on stdout."""
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
    elif not quiet:
        show()
