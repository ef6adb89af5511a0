"""Workers that join a run on its way and do not fit: they compute nothing, are named, and the run goes on."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pipeline as sm
from pipeline.errors import UsageError
from pipeline.run.cluster import connect
from pipeline.run.clusters.latecomers import MisfitError, require_seen
from pipeline.run.events import Notice, StageAdvanced
from pipeline.run.settings import make_settings
from pipeline.store import Folder, TileStore, read_ledger
from tests.cluster.running import NO_SCENEMASK, OTHER_NUMPY, SLOW_TILES, Known, can_mount, odd_worker, with_another_disk
from tests.scenes import sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class _Watcher:
    """Does one thing after the first tile, then one after each misfit that was named."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.texts: list[str] = []
        self._steps = [*steps]
        self._started = False

    def __call__(self, event: Any) -> None:
        if isinstance(event, StageAdvanced) and not self._started:
            self._started = True
            self._steps.pop(0)()
        if isinstance(event, Notice) and "left out" in event.text:
            self.texts.append(event.text)
            self._steps.pop(0)()


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()


@pytest.mark.parametrize("disk", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a13_the_run_goes_on_with_those_that_fit(
    scheduler: tuple[str, Path], known: Known, tmp_path: Path, *, disk: bool
) -> None:
    """Other packages, no scenemask, another disk under the output's path; then the one that fits is replaced."""
    if disk and not can_mount():
        pytest.skip("needs root and unshare, for a worker that sees other disks")
    out = tmp_path / "out"
    with contextlib.ExitStack() as workers:
        pids = []

        def fitting(name: str) -> subprocess.Popen[bytes]:
            worker = workers.enter_context(odd_worker(scheduler, tmp_path / name, SLOW_TILES))
            pids.append(worker.pid)
            return worker

        def misfit(name: str, *odd: str) -> Callable[[], object]:
            return lambda: workers.enter_context(odd_worker(scheduler, tmp_path / name, *odd))

        def replace() -> None:
            _end(first)
            fitting("second")

        first = fitting("first")
        steps = [misfit("numpy", OTHER_NUMPY), misfit("none", NO_SCENEMASK)]
        steps += [misfit("disk", "", *with_another_disk(out))] if disk else []
        watcher = _Watcher(*steps, replace)
        options = {**known.options, "cluster": scheduler[0], "keep": True}
        made = sm.segment(known.scene, known.model, out, listener=watcher, **options)
    assert sha256(made.mask_path) == known.sha256
    assert [text.partition("(")[2][:6] for text in watcher.texts] == ["CL-012", "CL-015", "CL-014"][: len(steps)]
    assert any(np.__version__ + "9" in text for text in watcher.texts)
    writers = {int(path.name.split("-")[-2]) for path in (out / ".scenemask" / "ledger").iterdir()}
    assert writers == set(pids), "who computed tiles"


def test_a13_without_any_that_fits_it_ends_and_can_be_continued(
    scheduler: tuple[str, Path], known: Known, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with contextlib.ExitStack() as workers:
        first = workers.enter_context(odd_worker(scheduler, tmp_path / "first", SLOW_TILES))
        watcher = _Watcher(
            lambda: workers.enter_context(odd_worker(scheduler, tmp_path / "numpy", OTHER_NUMPY)),
            lambda: _end(first),
        )
        options = {**known.options, "cluster": scheduler[0], "stuck_after": 1}
        with pytest.raises(UsageError, match="no worker is left but such as do not fit") as caught:
            sm.segment(known.scene, known.model, out, listener=watcher, **options)
    assert (caught.value.code, caught.value.exit_code) == ("CL-012", 2)
    assert read_ledger(out / ".scenemask" / "ledger")
    assert sha256(sm.segment(known.scene, known.model, out, **known.options).mask_path) == known.sha256


def test_a13_a_worker_that_sees_another_store_refuses(tmp_path: Path) -> None:
    layout: dict[str, Any] = {"shape": (70, 80), "dtype": "uint8", "fill": 255, "shard_hw": (64, 64)}
    mine, other = (TileStore.create(tmp_path / name, **layout) for name in ("mine", "other"))
    with connect(make_settings({})) as connection:
        asked: list[tuple[TileStore, str | None, Path | None]] = [
            (mine, None, None), (mine, mine.identity, tmp_path), (other, mine.identity, None),
            (TileStore(Folder(tmp_path / "none")), mine.identity, None), (mine, mine.identity, tmp_path / "none"),
        ]  # fmt: skip
        told = [connection.client.submit(require_seen, s, i, folder=f, pure=False).exception() for s, i, f in asked]
    assert told[:2] == [None, None]
    for error, why in zip(told[2:], ("another one has that path", "NotFound", "it is not there"), strict=True):
        assert isinstance(error, MisfitError)
        assert error.failure.code == "CL-014"
        assert why in error.failure.what
