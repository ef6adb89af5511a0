"""A batch as SLURM jobs: an array whose tasks need no scheduler between nodes, and a job that makes an end of it.

Everything is frozen in `OUT_ROOT/.scenemask-batch/` first: list, settings, job scripts. Tasks read those, so nobody's
later edit changes what they do. A task that is preempted or out of time ends with 75 and goes back into the queue.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Literal

import yaml

from pipeline.errors import InfrastructureError, UsageError
from pipeline.location import is_remote
from pipeline.run.freeze import freeze_batch
from pipeline.run.outcomes import FOLDER
from pipeline.run.settings import SegmentSettings, make_settings
from pipeline.store import atomic_write_bytes, private_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.model import Model

_LEFT_TO_THE_SUBMITTER = ("--array", "--dependency", "--signal", "--requeue", "--no-requeue", "--wrap", "--parsable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What was written, and what SLURM calls it."""

    scripts: tuple[Path, Path]
    """Of the array, and of the job that makes an end."""
    jobs: tuple[str, str] | None
    """Their ids; None where nothing was submitted."""
    scenes: int
    tasks: int
    split: str
    logs: Path

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            **asdict(self),
            "scripts": [str(path) for path in self.scripts],
            "logs": str(self.logs),
            "jobs": None if self.jobs is None else list(self.jobs),
        }


def submit_array(
    scenes: Sequence[str | Path],
    model: Model | str | Path,
    out_root: str | Path,
    *,
    tasks: int,
    split: Literal["scenes", "tiles"] | None = None,
    sbatch_options: str = "",
    dry_run: bool = False,
    lists: Sequence[Path] = (),
    asset: str | None = None,
    max_failures: int | None = None,
    retry_failed: bool = False,
    **options: Any,
) -> Submitted:
    """Freeze a batch, write its job scripts and submit them.

    Args:
        scenes: As for `batch`.
        model: Its path: tasks load it on their own nodes.
        out_root: Must be seen by all nodes.
        tasks: Of the array.
        split: What tasks share out; tiles where there are fewer scenes than tasks, if not given.
        sbatch_options: Added to both jobs: partition, GPUs, memory, time.
        dry_run: Submit nothing.
        lists: As for `batch`.
        asset: As for `batch`.
        max_failures: As for `batch`, in each task.
        retry_failed: As for `batch`.
        **options: Fields of `SegmentSettings`.

    Raises:
        UsageError: CF-060 for options of sbatch that are ours to give; what `batch` refuses.
        InfrastructureError: CL-030, there is no sbatch, or it refuses.
    """
    settings = make_settings(options)
    _refuse_options(shlex.split(sbatch_options))
    if not isinstance(model, str | Path):
        raise UsageError(
            "an array needs the path of a model, got one in memory",
            code="CF-060",
            title="Array cannot be submitted",
            fix="save it with save_model and give the folder",
        )
    if is_remote(out_root):
        raise UsageError(
            f"the scripts and logs of an array cannot go to {out_root}, only to a folder that all nodes see",
            code="CF-055",
            title="Output of an array is no folder",
            where="-o",
            fix="give a folder; or submit jobs of your own with `scenemask batch --share I/N -o s3://bucket/prefix`",
        )
    frozen = freeze_batch(scenes, model, out_root, settings=settings, lists=lists, asset=asset)
    assert isinstance(frozen.root, Path)
    by = split or ("tiles" if len(frozen.rows) < tasks else "scenes")
    folder = frozen.root / FOLDER
    logs = private_folder(folder / "logs")
    given = folder / "settings.yaml"
    atomic_write_bytes(given, _as_yaml(settings))
    command = [sys.executable, "-m", "pipeline", "batch", "-m", str(Path(model).absolute()), "-o", str(frozen.root)]
    command += ["--config", str(given)]
    command += ["--retry-failed"] * retry_failed
    command += [] if max_failures is None else ["--max-failures", str(max_failures)]
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", frozen.root.name) or "batch"
    common = {"name": f"scenemask-{name}", "logs": shlex.quote(str(logs)), "options": _directives(sbatch_options)}
    common["warning_s"] = str(_warning_s(shlex.split(sbatch_options)))
    share = f'--share "$SLURM_ARRAY_TASK_ID/{tasks}" --split {by}'
    array = _write(folder / "array.sbatch", common, command=f"{shlex.join(command)} {share}", array=f"0-{tasks - 1}")
    end = _write(folder / "end.sbatch", common, command=shlex.join(command), array=None)
    jobs = None
    if not dry_run:
        first = _submit([str(array)])
        try:
            jobs = first, _submit([f"--dependency=afterany:{first}", str(end)])
        except InfrastructureError:
            subprocess.run(["scancel", first], check=False)  # noqa: S603, S607 - beside sbatch; an array alone has no end
            raise
    return Submitted(scripts=(array, end), jobs=jobs, scenes=len(frozen.rows), tasks=tasks, split=by, logs=logs)


def _as_yaml(settings: SegmentSettings) -> bytes:
    """The settings that were given, for each task to find its own defaults of the others."""
    told = settings.model_dump(mode="json", include=settings.model_fields_set)
    cluster = "cuda" if settings.cluster == "cuda" else "local"  # a task has its own node, and starts nothing elsewhere
    return yaml.safe_dump({**told, "cluster": cluster}).encode()


def _refuse_options(options: Sequence[str]) -> None:
    ours = [one for one in options if one.partition("=")[0] in _LEFT_TO_THE_SUBMITTER]
    stray = [one for one in options if not one.startswith("-")]
    if ours or stray:
        raise UsageError(
            f"--sbatch holds {' '.join(ours + stray)}, expected options of one word such as --partition=gpu",
            code="CF-060",
            title="Array cannot be submitted",
            fix="leave out --array, --dependency, --signal and --requeue: they are set already",
        )


def _warning_s(options: Sequence[str]) -> int:
    """Seconds before the end of its time that a task is warned: two minutes, or a third of a shorter time."""
    given = [re.sub("^(--time=|-t)", "", one) for one in options if re.match("--time=|-t", one)]
    found = _TIME.fullmatch(given[-1]) if given else None
    if found is None:
        return _WARNING_S
    days, parts = int(found[1] or 0), [int(part) for part in found[2].split(":")]
    units = (3600, 60, 1) if found[1] or len(parts) == len("HMS") else (60, 1)
    limit = 86_400 * days + sum(unit * part for unit, part in zip(units, parts, strict=False))
    return min(_WARNING_S, max(1, limit // 3))


_WARNING_S = 120
_TIME = re.compile(r"(?:(\d+)-)?(\d+(?::\d+){0,2})")
"""SLURM's: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, ..."""


def _directives(options: str) -> str:
    return "\n".join(f"#SBATCH {shlex.quote(one)}" for one in shlex.split(options))


def _write(path: Path, common: dict[str, str], *, command: str, array: str | None) -> Path:
    template = Template(files("pipeline.run").joinpath("job.sbatch").read_text("utf-8"))
    log = "%A_%a.log" if array else "%j_end.log"
    text = template.substitute(
        common,
        command=command,
        log=log,
        array=f"#SBATCH --array={array}" if array else "#SBATCH --kill-on-invalid-dep=no",
        job="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "${SLURM_JOB_ID}",
    )
    atomic_write_bytes(path, text.encode())
    return path


def _submit(arguments: list[str]) -> str:
    """Id of the job."""
    program = shutil.which("sbatch")
    if program is None:
        raise InfrastructureError(
            "sbatch was not found on this machine",
            code="CL-030",
            title="SLURM cannot be reached",
            fix="run this on a login node, or write the scripts only with --dry-run",
        )
    done = subprocess.run([program, "--parsable", *arguments], capture_output=True, text=True, check=False)  # noqa: S603 - found on PATH, our own scripts
    if done.returncode:
        raise InfrastructureError(
            f"sbatch refuses the job: {(done.stderr or done.stdout).strip()}",
            code="CL-030",
            title="SLURM refuses the job",
            where=arguments[-1],
            fix="correct --sbatch; the frozen batch is kept, the same command submits it",
        )
    return done.stdout.strip().partition(";")[0]
