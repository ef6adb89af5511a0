"""Batches as array jobs of a real SLURM: no scheduler between nodes, requeued when they are stopped."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import pipeline as sm
from pipeline.errors import UsageError
from pipeline.run.array import submit_array
from tests.scenes import save_unet, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.running import Known
    from tests.commands import Cli


def _jobs(what: str = "%i") -> list[str]:
    return subprocess.run(["squeue", "-h", "-r", "-o", what], check=True, capture_output=True, text=True).stdout.split()


def _await_end(out: Path, *, seconds: float) -> str:
    """Until no job is left; what they have said."""
    deadline = time.monotonic() + seconds
    while _jobs():
        assert time.monotonic() < deadline, _said(out)
        time.sleep(0.5)
    return _said(out)


def _said(out: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((out / ".scenemask-batch" / "logs").iterdir()))


@pytest.mark.usefixtures("slurm")
def test_tasks_share_out_the_tiles_of_one_scene(known: Known, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out put"
    flags = ["--patch", 64, "--tile", 1, "--vectors", "none"]
    code, printed, _ = cli("batch", known.scene, "-m", known.model, "-o", out, *flags, "--array", 2, "--json")
    assert code == 0
    told = json.loads(printed)
    assert (told["split"], told["tasks"], len(told["jobs"])) == ("tiles", 2, 2)
    said = _await_end(out, seconds=240)
    assert sha256(out / "scene" / "mask.tif") == known.sha256, said
    assert json.loads((out / "batch.json").read_text())["counts"]["done"] == 1
    assert "BatchAdvanced" not in said
    assert said.count("1 scenes, 1 to do") == 3, "two tasks, and the job that makes an end of it"


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_preempted_task_goes_back_into_the_queue_and_continues(tmp_path: Path) -> None:
    scenes = [
        write_scene(tmp_path / f"s{i}.tif", smooth_values(2, (700, 600), seed=i), names=("b0", "b1")) for i in range(4)
    ]
    save_unet(tmp_path / "model", depth=2)
    out, options = tmp_path / "out", {"patch": 64, "tile": 16, "vectors": "none"}
    submitted = submit_array(scenes, tmp_path / "model", out, tasks=2, **options)
    assert submitted.jobs is not None
    task = f"{submitted.jobs[0]}_0"
    deadline = time.monotonic() + 120
    while not any(out.glob("*/.scenemask/ledger/*.jsonl")):
        assert time.monotonic() < deadline, _said(out)
        time.sleep(0.1)
    subprocess.run(["scontrol", "requeue", task], check=True)
    said = _await_end(out, seconds=500)
    assert "RU-001" in said, "SLURM stopped it, and it said so"
    for scene in scenes:
        reference = sm.segment(scene, tmp_path / "model", tmp_path / "here" / scene.stem, **options)
        assert sha256(out / scene.stem / "mask.tif") == sha256(reference.mask_path), said
    assert json.loads((out / "batch.json").read_text())["counts"]["done"] == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("slurm")
def test_a14_a_task_whose_time_is_over_goes_back_into_the_queue_and_continues(tmp_path: Path) -> None:
    """Of a minute, SLURM's least, it warns after 10 to 40 s; it waits for two before it starts a task again."""
    sizes = {"large": (1300, 1100), "small": (100, 90)}
    scenes = [write_scene(tmp_path / f"{n}.tif", smooth_values(2, yx), names=("b0", "b1")) for n, yx in sizes.items()]
    save_unet(tmp_path / "model", depth=2)
    out, options = tmp_path / "out", {"patch": 64, "tile": 16, "vectors": "none"}
    submit_array(scenes, tmp_path / "model", out, tasks=1, split="scenes", sbatch_options="--time=1", **options)
    said = _await_end(out, seconds=1700)
    assert "RU-001" in said, "SLURM warned it, and it said so"
    assert "DUE TO TIME LIMIT" not in said, "it was gone before the limit"
    assert said.count("DUE TO JOB REQUEUE") >= 1, "it went back into the queue"
    for scene in scenes:
        reference = sm.segment(scene, tmp_path / "model", tmp_path / "here" / scene.stem, **options)
        assert sha256(out / scene.stem / "mask.tif") == sha256(reference.mask_path), said
    assert json.loads((out / "batch.json").read_text())["counts"]["done"] == 2


@pytest.mark.parametrize(
    ("options", "warning_s"),
    [
        ("", 120), ("--time=1", 20), ("--time=90", 120), ("--time=3:30", 70), ("--time=0:00:45", 15),
        ("--time=1-0", 120), ("--time=0-0:05", 100), ("--time=5 --time=UNLIMITED", 120), ("--time=0", 1), ("-t1", 20),
    ],
)  # fmt: skip
def test_a_short_task_is_warned_in_its_last_third(known: Known, tmp_path: Path, options: str, warning_s: int) -> None:
    made = submit_array([known.scene], known.model, tmp_path, tasks=1, dry_run=True, sbatch_options=options)
    assert f"#SBATCH --signal=B:USR1@{warning_s}\n" in made.scripts[0].read_text()


def test_scripts_can_be_looked_at_first(known: Known, tmp_path: Path) -> None:
    options = "--partition=gpu --gres=gpu:1 --comment='two words'"
    made = submit_array([known.scene], known.model, tmp_path / "out", tasks=3, dry_run=True, sbatch_options=options)
    assert made.jobs is None
    script = made.scripts[0].read_text()
    for line in ("--array=0-2", "--requeue", "--signal=B:USR1@120", "--partition=gpu", "--gres=gpu:1"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH '--comment=two words'" in script
    subprocess.run(["bash", "-n", *made.scripts], check=True)


@pytest.mark.parametrize("options", ["--array=1", "--dependency=singleton", "-p gpu", "--no-requeue"])
def test_options_that_are_ours_to_give(known: Known, tmp_path: Path, options: str) -> None:
    with pytest.raises(UsageError, match="CF-060"):
        submit_array([known.scene], known.model, tmp_path / "out", tasks=3, sbatch_options=options)
    assert not (tmp_path / "out").exists()
