"""B1, B2, B3: disks that run full, of many sizes, under each thing that is written. Needs to mount; skipped without."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pipeline as sm
from pipeline.errors import ResourceError
from pipeline.run import scratch as scratch_module
from tests.faults.commands import Starter
from tests.scenes import save_threshold_model, sha256, write_scene
from tests.unit.store.helpers import tiny_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPE = (512, 512)
OPTIONS: dict[str, Any] = {"patch": 96, "tile": 1, "vectors": "geojson,gpkg,fgb,parquet"}
_PAGE = 4096


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of noise, which does not shrink, a model, and an undisturbed run in `whole`."""
    folder = tmp_path_factory.mktemp("disk")
    noise = np.random.default_rng(0).integers(1, 1000, (2, *SHAPE)).astype(np.uint16)
    noise[:, 96:] = noise[:, 96:] // 500 * 500 + 1  # less of it for the polygons
    write_scene(folder / "scene.tif", np.repeat(np.repeat(noise[:, ::8, ::8], 8, 1), 8, 2), names=("b0", "b1"))
    save_threshold_model(folder / "model")
    sm.segment(folder / "scene.tif", folder / "model", folder / "whole", **OPTIONS)
    return folder


def _segment(ground: Path, out: Path, **more: Any) -> sm.RunResult:
    return sm.segment(ground / "scene.tif", ground / "model", out, **OPTIONS, **more)


def _same(ground: Path, out: Path) -> bool:
    names = ("mask.tif", "polygons.geojson", "polygons.fgb", "polygons.parquet", "polygons.gpkg")
    return all(sha256(out / name) == sha256(ground / "whole" / name) for name in names)


@contextlib.contextmanager
def _grown(disk: Path) -> Iterator[None]:
    """Space is freed."""
    subprocess.run(["mount", "-o", "remount,size=64M", str(disk)], check=True)
    yield


def _sizes(least: int, most: int, count: int) -> list[Any]:
    """`count` sizes, of which five are enough for a quick test."""
    sizes = [int(size) // _PAGE * _PAGE for size in np.linspace(least, most, count)]
    quick = set(sizes[:: max(1, count // 5)][:5])
    return [size if size in quick else pytest.param(size, marks=pytest.mark.slow) for size in sizes]


@pytest.fixture
def no_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at free space before the run, which would refuse most of these disks, finds enough (B2)."""
    monkeypatch.setattr(scratch_module, "require_free_space", lambda *_: None)


@pytest.mark.usefixtures("no_preflight")
@pytest.mark.parametrize("size_bytes", _sizes(60_000, 1_200_000, 25))
def test_b1_b3_the_output_disk_fills_up(ground: Path, tmp_path: Path, size_bytes: int) -> None:
    """Ledger, staged mask, vectors and the records lie there; the tiles elsewhere."""
    with tiny_disk(tmp_path / "disk", size_bytes) as disk:
        out = disk / "out"
        failed = None
        try:
            _segment(ground, out, scratch=tmp_path / "scratch")
        except ResourceError as error:
            failed = error
        if failed is not None:
            _check(failed, out)
            with _grown(disk):
                _segment(ground, out)
        assert _same(ground, out)
        assert not (out / ".scenemask").exists()
        assert not list((tmp_path / "scratch").iterdir())


def _check(failed: ResourceError, out: Path) -> None:
    """It says so, and nothing has a final name."""
    assert failed.code in {"RS-001", "RS-002"}, failed.block()
    assert failed.exit_code == 7
    assert failed.fix
    assert not out.exists() or {path.name for path in out.iterdir()} <= {".scenemask"}, list(out.iterdir())


@pytest.mark.usefixtures("no_preflight")
@pytest.mark.parametrize("size_bytes", _sizes(16_000, 400_000, 25))
def test_b1_the_scratch_disk_fills_up(ground: Path, tmp_path: Path, size_bytes: int) -> None:
    with tiny_disk(tmp_path / "disk", size_bytes) as disk:
        out = tmp_path / "out"
        failed = None
        try:
            _segment(ground, out, scratch=disk / "scratch")
        except ResourceError as error:
            failed = error
        if failed is not None:
            _check(failed, out)
            with _grown(disk):
                _segment(ground, out, scratch=disk / "scratch")
        assert _same(ground, out)
        assert not list((disk / "scratch").iterdir())


def test_b2_a_disk_that_cannot_suffice_is_refused_before_work(ground: Path, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 300_000) as disk:
        heard: list[Any] = []
        with pytest.raises(ResourceError, match=r"RS-001.*needed") as caught:
            _segment(ground, disk / "out", listener=heard.append)
        assert "free" in caught.value.what
        assert {event.name for event in heard if hasattr(event, "total")} == {"plan"}
        with _grown(disk):
            _segment(ground, disk / "out")
        assert _same(ground, disk / "out")


@pytest.mark.parametrize("size_bytes", _sizes(4096, 110_000, 25))
def test_b3_vectorize_on_a_disk_that_fills_up(ground: Path, tmp_path: Path, size_bytes: int) -> None:
    """Each format: no file, and nothing hidden beside it; the same command again once there is room."""
    from pipeline.run.vectorize import vectorize_to_file

    with tiny_disk(tmp_path / "disk", size_bytes) as disk:
        for suffix in ("geojson", "gpkg", "fgb", "parquet"):
            out = disk / f"lakes.{suffix}"
            failed = None
            try:
                vectorize_to_file([ground / "whole" / "mask.tif"], out)
            except ResourceError as error:
                failed = error
            assert failed is None or failed.code == "RS-002"
            assert [path.name for path in disk.iterdir()] == ([] if failed else [out.name])
            out.unlink(missing_ok=True)
        with _grown(disk):
            vectorize_to_file([ground / "whole" / "mask.tif"], disk / "lakes.gpkg")
        assert [path.name for path in disk.iterdir()] == ["lakes.gpkg"]


def test_b3_a_log_on_a_full_disk_does_not_end_a_run(ground: Path, tmp_path: Path, starter: Starter) -> None:
    """stderr goes to a disk without a free byte."""
    import sys

    from tests.faults.commands import ROOT

    with tiny_disk(tmp_path / "disk", 8 * _PAGE) as disk:
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            file.write(bytes(64 * _PAGE))
        main = [sys.executable, "-c", "from pipeline.cli import main; main()", "segment", str(ground / "scene.tif")]
        command = [
            *main,
            "-m",
            str(ground / "model"),
            "-o",
            str(tmp_path / "out"),
            "-v",
            "--patch",
            "96",
            "--tile",
            "1",
        ]
        with (disk / "log").open("ab") as log:
            ended = subprocess.run(
                [*command, "--vectors", OPTIONS["vectors"]], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, check=False
            )
        assert ended.returncode == 0
        assert (disk / "log").stat().st_size == 0
        assert _same(ground, tmp_path / "out")
