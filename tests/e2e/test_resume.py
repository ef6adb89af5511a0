"""A run that was cut off is continued as it began: settings adopted, what lies elsewhere looked at again."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

import pipeline as sm
from pipeline.errors import Interrupted, OutputError, ResourceError, UsageError
from pipeline.run import segment as module
from pipeline.run.events import Event, StageAdvanced, StageFinished, StageStarted
from pipeline.store.lock import Owner
from tests.scenes import save_threshold_model, sha256, smooth_values, write_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHAPE = (130, 170)
OPTIONS: dict[str, Any] = {"patch": 64, "tile": 1, "vectors": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_threshold_model(folder)
    return folder


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif", smooth_values(2, SHAPE), names=("b0", "b1"))


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `segment` until three tiles are done, as if Ctrl-C had come then."""

    def begin(*arguments: Any, **options: Any) -> None:
        def three(connection: Any, job: Any, model: Any, tiles: Any, **more: Any) -> None:
            whole(connection, job, model, tiles[:3], **more)
            raise KeyboardInterrupt

        whole = module.run_tiles
        with monkeypatch.context() as patch:
            patch.setattr(module, "run_tiles", three)
            with pytest.raises(KeyboardInterrupt):
                sm.segment(*arguments, **options)

    return begin


def _write_aoi(path: Path, left: float) -> Path:
    box = shapely.box(500_000 + left, 5_000_000 - 1000, 500_000 + left + 600, 5_000_000 - 100)
    path.unlink(missing_ok=True)
    geopandas.GeoDataFrame(geometry=[box], crs="EPSG:32633").to_file(path)
    return path


def test_an_area_of_interest_that_changed_is_refused(
    scene: Path, model: Path, tmp_path: Path, cut_off: Callable[..., None]
) -> None:
    out, aoi = tmp_path / "out", _write_aoi(tmp_path / "aoi.gpkg", 100)
    cut_off(scene, model, out, aoi=aoi, **OPTIONS)
    before = aoi.read_bytes()
    _write_aoi(aoi, 700)
    with pytest.raises(OutputError, match="aoi") as caught:
        sm.segment(scene, model, out)
    assert caught.value.code == "OU-011"
    aoi.write_bytes(before)
    whole = sm.segment(scene, model, tmp_path / "whole", aoi=aoi, **OPTIONS)
    assert sha256(sm.segment(scene, model, out).mask_path) == sha256(whole.mask_path)


def test_overwriting_after_a_cut_begins_anew_with_the_settings_given(
    scene: Path, model: Path, tmp_path: Path, cut_off: Callable[..., None]
) -> None:
    out, aoi = tmp_path / "out", _write_aoi(tmp_path / "aoi.gpkg", 100)
    cut_off(scene, model, out, aoi=aoi, **OPTIONS)
    aoi.unlink()
    result = sm.segment(scene, model, out, overwrite=True, **OPTIONS)
    assert result.summary["valid_px"] == SHAPE[0] * SHAPE[1]


@pytest.mark.parametrize("given", [{"bands": "2,1"}, {"nodata": 7}, {"assume_crs": "EPSG:32633"}])
def test_how_the_scene_was_opened_is_adopted(
    model: Path, tmp_path: Path, cut_off: Callable[..., None], given: dict[str, Any]
) -> None:
    data = smooth_values(2, SHAPE)
    data[:, :20] = 7
    crs = None if "assume_crs" in given else "EPSG:32633"
    scene = write_scene(tmp_path / "scene.tif", data, names=("b0", "b1"), crs=crs)
    out = tmp_path / "out"
    cut_off(scene, model, out, **given, **OPTIONS)
    whole = sm.segment(scene, model, tmp_path / "whole", **given, **OPTIONS)
    assert sha256(sm.segment(scene, model, out).mask_path) == sha256(whole.mask_path)
    assert sm.segment(scene, model, out).resumed
    with pytest.raises(OutputError, match="OU-011"):
        sm.segment(scene, model, out, bands="1,1", nodata=9)


def test_nan_may_be_given_as_nodata(model: Path, tmp_path: Path, cut_off: Callable[..., None]) -> None:
    data = smooth_values(2, SHAPE).astype(np.float32)
    data[:, 100:, 20:] = math.nan
    scene = write_scene(tmp_path / "scene.tif", data, names=("b0", "b1"))
    out = tmp_path / "out"
    cut_off(scene, model, out, nodata=math.nan, **OPTIONS)
    result = sm.segment(scene, model, out, nodata="nan")
    with rasterio.open(result.mask_path) as mask:
        assert (mask.read(1) == np.where(np.isnan(data[0]), 255, data[0] > 500)).all()
    assert sm.segment(scene, model, out, nodata=math.nan).resumed
    assert sm.segment(scene, model, out).resumed


def test_b18_relative_paths_are_those_of_the_folder_where_a_run_began(
    scene: Path, model: Path, tmp_path: Path, cut_off: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes of a cluster, and a resumption from elsewhere, stand in another folder."""
    _write_aoi(tmp_path / "aoi.gpkg", 100)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    whole = sm.segment(scene, model, "whole", aoi="aoi.gpkg", **OPTIONS)
    assert whole.mask_path.is_absolute()
    cut_off("scene.tif", model, "out", aoi="aoi.gpkg", scratch="scratch", **OPTIONS)
    monkeypatch.chdir(elsewhere)
    result = sm.segment(scene, model, tmp_path / "out")
    assert sha256(result.mask_path) == sha256(whole.mask_path)
    assert list(elsewhere.iterdir()) == []


def test_a_run_that_ended_while_we_waited_is_not_computed_again(
    scene: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may finish between the look at the folder and the lock."""
    finished = sm.segment(scene, model, tmp_path / "other", **OPTIONS).out_dir
    out = tmp_path / "out"
    create = module.create_output_folder

    def slow(folder: Path) -> Path:
        scratch = create(folder)
        for path in finished.iterdir():
            if path.is_file():
                shutil.copy(path, folder)
        return scratch

    monkeypatch.setattr(module, "create_output_folder", slow)
    assert sm.segment(scene, model, out, **OPTIONS).resumed


def _only_folder(scratch: Path) -> Path:
    (folder,) = scratch.iterdir()
    return folder


def test_runs_that_share_a_scratch_folder_leave_each_other_alone(
    scene: Path, model: Path, tmp_path: Path, cut_off: Callable[..., None]
) -> None:
    scratch = tmp_path / "scratch"
    other = write_scene(tmp_path / "other.tif", smooth_values(2, SHAPE, seed=1), names=("b0", "b1"))
    whole = sm.segment(scene, model, tmp_path / "whole", **OPTIONS)
    cut_off(scene, model, tmp_path / "out", scratch=scratch, **OPTIONS)
    store = _only_folder(scratch)
    sm.segment(other, model, tmp_path / "second", scratch=scratch, **OPTIONS)
    assert _only_folder(scratch) == store
    told: list[Any] = []
    result = sm.segment(scene, model, tmp_path / "out", scratch=scratch, listener=told.append)
    started = next(e for e in told if isinstance(e, StageStarted) and e.name == "infer")
    assert started.done == 3
    assert sha256(result.mask_path) == sha256(whole.mask_path)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_store_that_is_gone_is_begun_anew(
    scene: Path, model: Path, tmp_path: Path, cut_off: Callable[..., None], *, elsewhere: bool
) -> None:
    scratch = tmp_path / "scratch"
    options = {"scratch": scratch} if elsewhere else {}
    whole = sm.segment(scene, model, tmp_path / "whole", **OPTIONS)
    cut_off(scene, model, tmp_path / "out", **options, **OPTIONS)
    shutil.rmtree(scratch if elsewhere else tmp_path / "out" / ".scenemask" / "store")
    told: list[Any] = []
    result = sm.segment(scene, model, tmp_path / "out", listener=told.append, **OPTIONS)
    assert [e for e in told if "are gone" in getattr(e, "text", "")]
    assert sha256(result.mask_path) == sha256(whole.mask_path)


def test_an_output_folder_may_be_moved_between_runs(
    scene: Path, model: Path, tmp_path: Path, cut_off: Callable[..., None]
) -> None:
    cut_off(scene, model, tmp_path / "before", **OPTIONS)
    (tmp_path / "before").rename(tmp_path / "after")
    told: list[Any] = []
    sm.segment(scene, model, tmp_path / "after", listener=told.append, **OPTIONS)
    assert next(e for e in told if isinstance(e, StageStarted) and e.name == "infer").done == 3
    assert not (tmp_path / "before").exists()


def test_beginning_anew_removes_the_store_of_the_run_that_is_given_up(
    scene: Path, model: Path, tmp_path: Path, cut_off: Callable[..., None]
) -> None:
    scratch = tmp_path / "scratch"
    cut_off(scene, model, tmp_path / "out", scratch=scratch, **OPTIONS)
    sm.segment(scene, model, tmp_path / "out", scratch=scratch, overwrite=True, **OPTIONS, padding="zero")
    assert list(scratch.iterdir()) == []


def test_b5_a_scratch_folder_that_cannot_be_made_is_called_that(scene: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="scratch folder") as caught:
        sm.segment(scene, model, tmp_path / "out", scratch=tmp_path / "file" / "scratch", **OPTIONS)
    assert caught.value.code == "CF-002"
    assert "--scratch" in caught.value.fix
    sm.segment(scene, model, tmp_path / "out", scratch=tmp_path / "scratch", **OPTIONS)


@pytest.mark.parametrize("short", ["scratch", "out"])
def test_b1_room_is_looked_for_on_both_disks(
    scene: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    """The tiles go to one, the files and the copies made on the way to the other."""
    from pipeline.run import scratch as place
    from pipeline.store import files

    asked: dict[str, int] = {}

    def free(folder: Path) -> int:
        return 10_000 if short in folder.relative_to(tmp_path).parts else 10**12

    require = files.require_free_space

    def recording(folder: Path, needed: int) -> None:
        asked[folder.relative_to(tmp_path).parts[0]] = needed
        require(folder, needed)

    monkeypatch.setattr(files, "free_bytes", free)
    monkeypatch.setattr(place, "same_disk", lambda *_: False)
    monkeypatch.setattr(place, "require_free_space", recording)
    with pytest.raises(ResourceError, match="RS-001"):
        sm.segment(scene, model, tmp_path / "out", scratch=tmp_path / "scratch", **OPTIONS)
    assert asked["scratch"] >= SHAPE[0] * SHAPE[1]
    if short == "out":
        assert asked["out"] >= 2 * SHAPE[0] * SHAPE[1]


class _Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("again", ["same", "other"])
def test_a1_an_overwriting_commit_killed_half_way_leaves_nothing_of_the_old_run(
    scene: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, again: str
) -> None:
    out = tmp_path / "out"
    sm.segment(scene, model, out, vectors="gpkg", patch=64, padding="zero")
    calls: dict[str, Any] = {"replace": Path.replace, "unlink": Path.unlink}
    done = 0

    def killable(name: str) -> Any:
        def call(self: Path, *arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += self.parent == out or (self.parent.name == "stage" and arguments[:1] == (out / self.name,))
            if done == step + 1:  # step 1 removes run.json, 2 the old polygons, the others move files
                raise _Killed
            return calls[name](self, *arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(Path, name, killable(name))
        with pytest.raises(_Killed):
            sm.segment(scene, model, out, vectors="fgb,geojson", patch=64, overwrite=True)
    assert not (out / "run.json").exists()
    if again == "same":
        result = sm.segment(scene, model, out)
    else:
        result = sm.segment(scene, model, out, vectors="none", patch=64, overwrite=True)
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {*result.summary["files"], "run.json"}
    assert result.polygons_paths == tuple(
        out / f"polygons.{s}" for s in (("fgb", "geojson") if again == "same" else ())
    )


@pytest.mark.parametrize(
    ("stage", "event"), [("mask", StageStarted), ("polygons", StageStarted), ("polygons", StageAdvanced)]
)
@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "parquet"])
def test_a5_a_signal_ends_mask_and_polygons_before_they_are_done(
    scene: Path, model: Path, tmp_path: Path, stage: str, event: type[Event], suffix: str
) -> None:
    told: list[Any] = []

    def listen(heard: Event) -> None:
        told.append(heard)
        if isinstance(heard, event) and heard.name == stage:  # type: ignore[union-attr]
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="all tiles are kept"):
        sm.segment(scene, model, tmp_path / "out", patch=64, vectors=suffix, listener=listen)
    assert not [e for e in told if isinstance(e, StageFinished) and e.name == stage]
    leftovers = [p.name for p in (tmp_path / "out" / ".scenemask" / "stage").iterdir()]
    assert set(leftovers) <= {"mask.tif"}
    assert sm.segment(scene, model, tmp_path / "out").mask_path.exists()


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb", "parquet"])
def test_a5_a_signal_ends_the_writing_of_polygons(
    scene: Path, model: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two batches, also in the middle of a driver that takes them as a stream."""
    from pipeline.vector import polygonset

    class Reader(polygonset.SpoolReader):
        def iter_batches(self, **options: Any) -> Iterator[Any]:
            for batch in super().iter_batches(**{**options, "max_rows": 1}):
                yield batch
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(polygonset, "SpoolReader", Reader)
    told: list[Any] = []
    with pytest.raises(Interrupted, match="all tiles are kept"):
        sm.segment(scene, model, tmp_path / "out", patch=64, vectors=suffix, listener=told.append)
    assert not [e for e in told if isinstance(e, StageFinished) and e.name == "polygons"]


@pytest.mark.parametrize("keep", [False, True])
def test_the_private_folder_goes_unless_it_is_kept(
    scene: Path, model: Path, tmp_path: Path, cut_off: Callable[..., None], *, keep: bool
) -> None:
    out = tmp_path / "out"
    cut_off(scene, model, out, **OPTIONS)
    lock = out / ".scenemask" / "lock"
    lock.mkdir()
    owner = asdict(replace(Owner.me(1.0), pid=2**22 - 7, pid_start=1, nonce="dead"))
    (lock / "owner.json").write_text(json.dumps(owner))
    sm.segment(scene, model, out, keep=keep)
    assert (out / ".scenemask" / "store").exists() == keep
    assert (out / ".scenemask").exists() == keep
    sm.segment(scene, model, out, overwrite=True, **OPTIONS)
    assert not (out / ".scenemask").exists()


def test_a_run_that_is_refused_leaves_no_private_folder(scene: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CF-006"):
        sm.segment(scene, model, tmp_path / "out", patch=1)
    assert list((tmp_path / "out").iterdir()) == []
