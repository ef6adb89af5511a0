"""Workers that cannot do the work are refused before the first tile. Real workers, in environments that do differ."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

import pipeline as sm
from pipeline.errors import UsageError
from pipeline.model import EngineSpec
from pipeline.run.cluster import connect
from pipeline.run.clusters.admission import same_but_for_patch, versions, why_not
from pipeline.run.settings import make_settings
from tests.cluster.running import NO_SCENEMASK, OTHER_NUMPY, ROOT, Known, can_mount, odd_worker, with_another_disk
from tests.scenes import sha256

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = EngineSpec(backend="torch", device="cpu", precision="float32", threads=2, one_size=True)


def test_a13_other_patch_levels_are_refused_in_a_table_and_can_be_allowed(
    scheduler: tuple[str, Path], known: Known, tmp_path: Path
) -> None:
    address, _ = scheduler
    options = {**known.options, "cluster": address}
    other = np.__version__ + "9"
    with odd_worker(scheduler, tmp_path, OTHER_NUMPY):
        with pytest.raises(UsageError) as caught:
            sm.segment(known.scene, known.model, tmp_path / "out", **options)
        assert caught.value.code == "CL-012"
        rows = caught.value.what.splitlines()[1:]
        assert len(rows) == 1, rows
        assert rows[0].split()[:5] == ["numpy", np.__version__, "here,", other, "at"]
        assert os.uname().nodename in rows[0]
        assert "--allow-version-skew" in caught.value.fix
        made = sm.segment(known.scene, known.model, tmp_path / "out", allow_version_skew=True, **options)
        assert sha256(made.mask_path) == known.sha256
        _check_engines(make_settings({"cluster": address, "allow_version_skew": True}))


def _check_engines(settings: object) -> None:
    for change, told in (
        ({"backend": "openvino"}, "openvino, which is not installed there"),
        ({"device": "cuda"}, "CUDA, and PyTorch finds no CUDA device there"),
    ):
        engine = ENGINE.model_copy(update=change)
        with pytest.raises(UsageError, match=told) as caught, connect(settings, engine=engine):  # type: ignore[arg-type]
            pass
        assert caught.value.code == "CL-013"


def test_a13_other_minor_versions_are_never_taken(scheduler: tuple[str, Path], tmp_path: Path) -> None:
    settings = make_settings({"cluster": scheduler[0], "allow_version_skew": True})
    with (
        odd_worker(scheduler, tmp_path, "import zarr; zarr.__version__ = '3.0.1'\n"),
        pytest.raises(UsageError, match=rf"CL-012.*\n +zarr +{zarr.__version__} here, 3\.0\.1 at tcp://") as caught,
        connect(settings, engine=ENGINE),
    ):
        pass
    assert "--allow" not in caught.value.fix
    assert caught.value.exit_code == 2


def test_a_worker_without_scenemask_is_named(scheduler: tuple[str, Path], tmp_path: Path) -> None:
    with (
        odd_worker(scheduler, tmp_path, NO_SCENEMASK),
        pytest.raises(
            UsageError, match=r"worker tcp://127\.0\.0\.1:\d+ cannot say what it is: \w+: .*pipeline"
        ) as caught,
        connect(make_settings({"cluster": scheduler[0]})),
    ):
        pass
    assert caught.value.code == "CL-015"


@pytest.mark.skipif(not can_mount(), reason="needs root and unshare, for a worker that sees other disks")
def test_a_worker_that_does_not_see_the_output_is_named(
    scheduler: tuple[str, Path], known: Known, tmp_path: Path
) -> None:
    """It has another disk under the same path, as a host has that forgot to mount it."""
    out = tmp_path / "out"
    out.mkdir()
    with (
        odd_worker(scheduler, tmp_path, "", *with_another_disk(out)),
        pytest.raises(UsageError) as caught,
    ):
        sm.segment(known.scene, known.model, out, cluster=scheduler[0], **known.options)
    assert caught.value.code == "CL-014"
    assert f"does not see {out}" in caught.value.what
    assert os.uname().nodename in caught.value.where
    assert not [path for path in out.rglob("*") if path.name.startswith(".seen")]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2.4.1", "2.4.3", True), ("2.13.0+cpu", "2.13.0+cu130", True), ("2.13.0", "2.13.1+cpu", True),
        ("2026.8.0", "2026.8.1", True), ("3.11.7", "3.12.1", False), ("2.4.1", "3.4.1", False),
        ("2.4", "2.4.1", True), ("not installed", "not installed", False), ("2.5.1", "not installed", False),
        ("2.1", "2.10", False),
    ],
)  # fmt: skip
def test_patch_levels(one: str, other: str, same: bool) -> None:  # noqa: FBT001
    assert same_but_for_patch(one, other) is same


def test_this_process_can_run_what_it_has() -> None:
    assert why_not("torch", "cpu", "bfloat16") is None
    assert why_not("openvino", "cpu", "float32") is None
    told = versions(("openvino", "cpu", "float32"))
    assert {"Python", "scenemask", "GDAL", "torch", "numpy", "openvino"} <= set(told)
    assert "not installed" not in told.values()
    assert (ROOT / "pipeline").is_dir()
