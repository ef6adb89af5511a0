"""Whose an output folder is, and how results enter it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import UsageError
from pipeline.store import (
    Staging,
    atomic_write_json,
    changed_files,
    create_output_folder,
    describe_files,
    foreign_output,
    inspect_output,
)
from pipeline.store.runfile import is_result_name
from pipeline.store.sealed import sealed, unsealed

from .helpers import tiny_disk

if TYPE_CHECKING:
    from collections.abc import Mapping


def _staged(out: Path, **files: str) -> Staging:
    create_output_folder(out)
    staging = Staging(out)
    for name, text in files.items():
        staging.path(name.replace("_", ".")).write_text(text)
    return staging


@pytest.mark.parametrize("document", [{"a": 1}, {"classes": {2: 0.1, 10: [1, "ä"]}, "none": None}])
def test_what_was_sealed_is_known_again_after_it_was_written(document: dict[str, object]) -> None:
    written = json.loads(json.dumps(sealed(document)))
    assert unsealed(written) == json.loads(json.dumps(document))
    assert unsealed(written | {"a": 2}) is None
    assert unsealed({key: value for key, value in written.items() if key != "checksum"}) is None


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ([], "empty"),
        (["notes.txt", "scene.tif", "mask.png", "polygons"], "empty"),
        (["mask.tif"], "foreign"),
        (["polygons.gpkg", "notes.txt"], "foreign"),
        (["item.json"], "foreign"),
        (["mask.tif", "run.json"], "complete"),
        (["mask.tif", ".scenemask/plan.json"], "unfinished"),
        ([".scenemask/plan.json"], "unfinished"),
        ([".scenemask/store/x"], "empty"),
        (["run.json", ".scenemask/plan.json"], "complete"),
    ],
)
def test_b6_what_a_folder_holds(tmp_path: Path, files: list[str], kind: str) -> None:
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(sealed({"a": 1})))
    state = inspect_output(tmp_path)
    assert state.kind == kind
    assert (state.run is not None) == ("run.json" in files)
    assert (state.plan is not None) == (".scenemask/plan.json" in files)


def test_absent_folders_and_files_in_the_way(tmp_path: Path) -> None:
    assert inspect_output(tmp_path / "none").kind == "absent"
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "dangling", "loop"):
        with pytest.raises(UsageError, match="CF-002"):
            inspect_output(tmp_path / name)


def test_b7_results_without_a_record_are_foreign(tmp_path: Path) -> None:
    (tmp_path / "mask.tif").write_bytes(b"all zero, from a run that was killed")
    state = inspect_output(tmp_path)
    error = foreign_output(tmp_path, state)
    assert state.kind == "foreign"
    assert (error.code, error.exit_code) == ("OU-001", 5)
    assert "mask.tif" in error.what
    assert "--overwrite" in error.fix


def test_b7_a_torn_run_json_is_foreign_and_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"a": ')
    state = inspect_output(tmp_path)
    assert state.kind == "foreign"
    assert "cannot be read" in foreign_output(tmp_path, state).what


def test_the_scratch_folder_is_private(tmp_path: Path) -> None:
    scratch = create_output_folder(tmp_path / "a" / "b")
    assert scratch == tmp_path / "a" / "b" / ".scenemask"
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert create_output_folder(tmp_path / "a" / "b") == scratch
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [".scenemask"]


def test_b5_a_read_only_folder_is_named_with_the_user(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 64 * 1024) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for out in (disk, disk / "new"):
            with pytest.raises(UsageError) as caught:
                create_output_folder(out)
            assert caught.value.exit_code == 2
            assert caught.value.code == "CF-002"
            assert str(out) in caught.value.what
            assert f"user id {os.geteuid()}" in caught.value.what


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, "loop", "nul\0"])
def test_b5_b17_b19_places_that_cannot_be_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match="CF-002"):
        create_output_folder(tmp_path / name)


def test_t15_a_planted_scratch_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".scenemask").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="a link"):
        create_output_folder(tmp_path / "out")


def test_b6_commit_replaces_all_and_removes_what_is_gone(tmp_path: Path) -> None:
    staging = _staged(tmp_path, mask_tif="1", polygons_gpkg="1")
    files = describe_files(staging.folder, ["mask.tif", "polygons.gpkg"])
    staging.commit(["mask.tif", "polygons.gpkg"], {"n": 1, "files": files})
    (tmp_path / "notes.txt").write_text("the user's")
    (tmp_path / "polygons.fgb").write_text("made by hand later")
    assert changed_files(tmp_path, files) == []

    again = _staged(tmp_path, mask_tif="2", polygons_geojson="2")
    again.commit(["mask.tif", "polygons.geojson"], {"n": 2})
    left = {p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file() and p.name != "run.json"}
    assert left == {
        "mask.tif": "2",
        "polygons.geojson": "2",
        "notes.txt": "the user's",
        "polygons.fgb": "made by hand later",
    }
    assert inspect_output(tmp_path).run == {"n": 2}
    assert changed_files(tmp_path, files) == ["mask.tif", "polygons.gpkg"]
    assert list(again.folder.iterdir()) == []


def test_b15_journals_of_a_replaced_geopackage_go_with_it(tmp_path: Path) -> None:
    """SQLite would play them into the new file."""
    for name in ("polygons.gpkg", "other.gpkg"):
        for ending in ("-journal", "-wal", "-shm"):
            (tmp_path / f"{name}{ending}").touch()
    _staged(tmp_path, polygons_gpkg="1").commit(["polygons.gpkg"], {"n": 1, "files": {"polygons.gpkg": {}}})
    others = [f"other.gpkg{ending}" for ending in ("-journal", "-shm", "-wal")]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [*others, "polygons.gpkg", "run.json"]
    (tmp_path / "polygons.gpkg-wal").touch()
    _staged(tmp_path, mask_tif="2").commit(["mask.tif"], {"n": 2})
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["mask.tif", *others, "run.json"]


def test_a_result_that_was_not_staged_stops_the_commit_before_it_begins(tmp_path: Path) -> None:
    _staged(tmp_path, mask_tif="1").commit(["mask.tif"], {"n": 1})
    staging = _staged(tmp_path, item_json="2")
    with pytest.raises(FileNotFoundError):
        staging.commit(["item.json", "mask.tif"], {"n": 2})
    assert (tmp_path / "mask.tif").read_text() == "1"
    assert inspect_output(tmp_path).run == {"n": 1}


class Killed(BaseException):
    """Stands for SIGKILL at one system call."""


def _again(out: Path, *, anew: bool) -> Staging:
    if not anew:
        return Staging(out)
    Staging(out).clear()
    return _staged(out, mask_tif="new", polygons_geojson="new", item_json="new")


@pytest.mark.parametrize("anew", [False, True], ids=["finished", "staged anew"])
def test_a1_a_commit_killed_at_any_step_never_shows_a_false_record_and_can_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, anew: bool
) -> None:
    names = ["mask.tif", "polygons.geojson", "item.json"]
    calls = {"replace": Path.replace, "unlink": Path.unlink}
    step = kill_at = 0

    def killable(name: str):  # type: ignore[no-untyped-def] # noqa: ANN202
        def call(self: Path, *args: object, **kwargs: object) -> object:
            nonlocal step
            step += 1
            if step == kill_at:
                raise Killed
            return calls[name](self, *args, **kwargs)  # type: ignore[operator]

        return call

    finished = False
    for kill_at in range(1, 40):
        out = tmp_path / str(kill_at)
        old = _staged(out, mask_tif="old", polygons_gpkg="old")
        old.commit(
            ["mask.tif", "polygons.gpkg"], {"n": 1, "files": describe_files(old.folder, ["mask.tif", "polygons.gpkg"])}
        )
        staging = _staged(out, mask_tif="new", polygons_geojson="new", item_json="new")
        run = {"n": 2, "files": describe_files(staging.folder, names)}
        step = 0
        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(Path, name, killable(name))
            try:
                staging.commit(names, run)
                finished = True
            except Killed:
                pass
        told = inspect_output(out).run
        if told is not None:
            assert changed_files(out, told["files"]) == []  # type: ignore[arg-type]
        if told is None or told["n"] == 1:
            _again(out, anew=anew).commit(names, run)
        assert inspect_output(out).run == run
        assert changed_files(out, run["files"]) == []  # type: ignore[arg-type]
        assert not (out / "polygons.gpkg").exists()
        if finished:
            break
    assert finished
    assert kill_at > 6


def test_what_a_killed_commit_had_moved_does_not_stay_beside_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = _staged(tmp_path, mask_tif="1", polygons_fgb="1")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.runfile.atomic_write_json", _dies_at_run_json)
        with pytest.raises(Killed):
            staging.commit(["mask.tif", "polygons.fgb"], {"n": 1})
    assert (tmp_path / "polygons.fgb").exists()
    other = Staging(tmp_path)
    other.clear()
    other.path("mask.tif").write_text("2")
    other.commit(["mask.tif"], {"n": 2})
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["mask.tif", "run.json"]


def _dies_at_run_json(path: Path, value: Mapping[str, object]) -> None:
    if path.name == "run.json":
        raise Killed
    atomic_write_json(path, value)


def test_staging_takes_names_of_results_only(tmp_path: Path) -> None:
    create_output_folder(tmp_path)
    staging = Staging(tmp_path)
    with pytest.raises(AssertionError, match="no name of a result"):
        staging.path("../../etc/passwd")
    staging.path("mask.tif").write_text("left by a killed run")
    staging.clear()
    assert list(staging.folder.iterdir()) == []
    assert stat.S_IMODE(staging.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("mask.tif", True),
        ("polygons.parquet", True),
        ("polygons.shp", False),
        ("Mask.tif", False),
        ("polygons.tar.gz", False),
        ("run.json", True),
    ],
)
def test_names_of_results(name: str, ours: bool) -> None:  # noqa: FBT001
    assert is_result_name(name) is ours
