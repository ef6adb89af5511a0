"""Results for people, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box, console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.run.array import Submitted
    from pipeline.run.batch import BatchResult
    from pipeline.run.demo import DemoResult
    from pipeline.run.segment import RunResult
    from pipeline.run.status import Status
    from pipeline.train import TrainResult


class Console(console.Console):
    """Leaves a closed pipe to those who print."""

    def on_broken_pipe(self) -> None:
        """Raise on, in place of ending the process."""
        raise BrokenPipeError


_LONG = 20
"""Numbers in a row that a person still reads."""


def show_run(result: RunResult) -> None:
    """Classes, stages and where to look."""
    console = Console(highlight=False)
    summary = result.summary
    console.print(_classes_table(summary["classes"], summary["valid_px"]))
    stages = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in summary["timings_s"].items())
    plan = summary["plan"]
    if summary.get("values"):
        console.print(f"values: {summary['values']}", soft_wrap=True)
    console.print(f"{plan['tiling']} tiling: {plan['reason']}", soft_wrap=True)
    console.print(f"{plan['precision']} on {plan['device']}: {plan['engine_reason']}", soft_wrap=True)
    console.print(f"{stages}   peak memory {summary['peak_memory_bytes'] / 1e9:.2f} GB")
    if summary.get("verify"):
        console.print(_verified(summary["verify"]))
    for name in summary["files"]:
        console.print(f"  {result.out_dir / name}", soft_wrap=True)


def show_batch(result: BatchResult) -> None:
    """Counts, what failed and why, and where to look."""
    console = Console(highlight=False)
    console.print("  ".join(f"{count} {status}" for status, count in result.counts.items()))
    if result.failures:
        table = Table("scene", "code", "what", box=box.SIMPLE)
        for one in result.failures[:_LONG]:
            table.add_row(one.name, one.code, escape(one.what.splitlines()[0]))
        console.print(table)
        if len(result.failures) > _LONG:
            console.print(f"and {len(result.failures) - _LONG} more")
        again = sum(one.transient for one in result.failures)
        if again:
            console.print(f"{again} of them for want of disk, memory or a server: the same command tries these again")
        console.print(f"  {result.root / 'failed.csv'}", soft_wrap=True)
    console.print(f"  {result.summary_path}", soft_wrap=True)


def show_submitted(submitted: Submitted) -> None:
    """Jobs, and where their scripts and logs lie."""
    console = Console(highlight=False)
    console.print(f"{submitted.scenes} scenes in {submitted.tasks} tasks, which share out {submitted.split}")
    if submitted.jobs is None:
        console.print("nothing was submitted (--dry-run)")
    else:
        console.print(f"array job {submitted.jobs[0]}, then job {submitted.jobs[1]}")
    for path in (*submitted.scripts, submitted.logs):
        console.print(f"  {path}", soft_wrap=True)


def _verified(found: dict[str, Any]) -> str:
    """One line: tiled against whole."""
    if not found["windows"]:
        return "nothing to verify: no valid pixel"
    seam, other = found["seam"], found["other"]
    return (
        f"verified {found['windows']} windows, {found['pixels']:,} px, against {found['against']}: "
        f"|Δp| at most {found['max_abs']:.1e}, mean {found['mean_abs']:.1e}; "
        f"{found['flips']} classes differ ({found['flips_frac']:.3%}); "
        f"seams {seam['max_abs']:.1e} and {seam['flips']} of {seam['pixels']:,} px, "
        f"elsewhere {other['max_abs']:.1e} and {other['flips']} of {other['pixels']:,} px"
    )


def show_plan(summary: dict[str, Any]) -> None:
    """The dry run."""
    facts = dict(summary)
    facts["peak_memory"] = f"{facts.pop('peak_memory_bytes') / 1e9:.2f} GB per worker"
    if facts["device_memory_bytes"] is None:
        del facts["device_memory_bytes"]
    else:
        facts["device_memory"] = f"{facts.pop('device_memory_bytes') / 1e9:.2f} GB"
    facts["block_cache"] = f"{facts.pop('block_cache_bytes') / 1e6:.0f} MB of decoded blocks"
    facts["scratch"] = f"{facts.pop('scratch_bytes') / 1e6:.1f} MB at most"
    show_facts(facts)


def show_facts(facts: dict[str, Any]) -> None:
    """Names and values; lists of records as tables."""
    console = Console(highlight=False)
    width = max((len(str(key)) for key in facts), default=0)
    for key, value in facts.items():
        label = str(key).replace("_", " ").ljust(width)
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            console.print(label, markup=False)
            console.print(_records_table(list(value)))
        elif isinstance(value, dict):
            console.print(label, markup=False)
            for name, inner in value.items():
                console.print(f"  {name}: {_plain(inner)}", markup=False, soft_wrap=True)
        else:
            console.print(f"{label}  {_plain(value)}", markup=False, soft_wrap=True)


_KINDS = {
    "absent": "nothing: there is no such folder",
    "empty": "nothing of a run",
    "complete": "a complete run",
    "unfinished": "an unfinished run",
    "foreign": "results without the record of a run",
}


def show_status(out_dir: Path | str, status: Status) -> None:
    """What a folder holds, line by line."""
    facts: dict[str, Any] = {"folder": out_dir, "holds": _KINDS[status.kind]}
    if status.finished:
        facts |= {"finished": status.finished, "by": f"scenemask {status.version}"}
    if status.progress is not None:
        progress = status.progress
        damaged = f", {progress.damaged} damaged" if progress.damaged else ""
        facts["stage"] = progress.stage + (" (of a run that is to replace these results)" if status.finished else "")
        facts["tiles"] = f"{progress.done} done, {progress.tiles - progress.done} left{damaged}"
    if status.holder is not None:
        holder = status.holder
        who = f"process {holder.pid} on {holder.host}, since {holder.started}"
        facts["lock"] = f"held by {who}" if holder.beats else f"left by {who}, which is dead"
    if status.files:
        facts["files"] = {name: f"{size:,} bytes" for name, size in status.files.items()}
    show_facts(facts)
    if status.progress is not None and status.progress.command and not (status.holder and status.holder.beats):
        Console(highlight=False).print(f"continue with: {status.progress.command}", markup=False, soft_wrap=True)


def show_demo(result: DemoResult) -> None:
    """What the demo made, and how good it is where it was never trained."""
    console = Console(highlight=False)
    scores = {"IoU unseen": [f"{score:.3f}" for score in result.iou]}
    console.print(_classes_table(result.run.summary["classes"], result.run.summary["valid_px"], scores))
    console.print(f"mean IoU on the part never trained on: {result.mean_iou:.3f}")
    stages = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in result.timings_s.items())
    console.print(f"{stages}   total {sum(result.timings_s.values()):.0f} s")
    console.print("look at:")
    for path in (result.run.out_dir / "preview.png", result.run.mask_path, *result.run.polygons_paths):
        console.print(f"  {path}", soft_wrap=True)


def _classes_table(classes: list[dict[str, Any]], valid_px: int, more: dict[str, list[str]] | None = None) -> Table:
    """A row per class with its share of the valid pixels; `more` holds further columns."""
    more = more or {}
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("class", "pixels", "share", "area", *more):
        table.add_column(name, justify="left" if name == "class" else "right")
    for number, row in enumerate(classes):
        further = (column[number] for column in more.values())
        share = f"{row['pixels'] / max(valid_px, 1):.1%}"
        table.add_row(row["name"], f"{row['pixels']:,}", share, _area(row["area_m2"]), *further)
    return table


def _area(area_m2: float | None) -> str:
    if area_m2 is None:
        return "no CRS"
    return f"{area_m2 / 1e6:,.3f} km²" if area_m2 >= 1e5 else f"{area_m2:,.0f} m²"  # noqa: PLR2004


def _records_table(records: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in records[0]:
        table.add_column(str(name).replace("_", " "))
    for record in records:
        table.add_row(*(_plain(value) for value in record.values()))
    return table


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and len(value) > _LONG:
        return f"{len(value)} values (--json shows them)"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value) or "-"
    return str(value)


def show_training(result: TrainResult) -> None:
    """What was learnt, and how good it is on parts that were not learnt from."""
    console = Console(highlight=False)
    training = result.training
    table = Table(box=box.SIMPLE_HEAD)
    parts = [part for part in ("val", "test") if training["accuracy"][part]]
    for name in ("class", *(f"{part} {key}" for part in parts for key in ("IoU", "F1"))):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name in training["accuracy"][parts[0]]["classes"] if parts else ():
        rows = [training["accuracy"][part]["classes"][name] for part in parts]
        table.add_row(name, *(_score(row[key]) for row in rows for key in ("iou", "f1")))
    if parts:
        means = [_score(training["accuracy"][part]["mean_iou"]) for part in parts]
        table.add_row("mean", *(cell for mean in means for cell in (mean, "")))
        console.print(table)
    kept = f"the weights of step {training['best_step']} are kept"
    console.print(f"{training['steps']} steps in {training['seconds']:.0f} s; {kept}")
    for name in ("model.json", "training.png", "example.png"):
        if (result.folder / name).exists():
            console.print(f"  {result.folder / name}", soft_wrap=True)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
