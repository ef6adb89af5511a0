"""Files that are whole or absent, and disks that are full."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ResourceError, UsageError
from pipeline.store import Folder, atomic_write_bytes, atomic_write_json, read_json, require_free_space
from pipeline.store.files import disk_full_as_error, free_bytes, human_bytes, private_folder

from .helpers import tiny_disk


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    atomic_write_json(path, {"z": 1, "a": "Ünïcode"})
    atomic_write_json(path, {"z": 2, "a": "x"})
    assert path.read_text() == '{\n  "z": 2,\n  "a": "x"\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert read_json(path) == {"z": 2, "a": "x"}


def test_a_folder_has_files_and_nothing_else(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    place.write("plan.json", b"")
    (place / "store").make()
    assert [place.has(name) for name in ("plan.json", "store", "none", "plan.json/below")] == [
        True,
        False,
        False,
        False,
    ]


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    atomic_write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_reads_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert read_json(tmp_path / "x") is None
    assert read_json(tmp_path / "absent") is None


def test_t15_a_link_planted_at_the_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".run.json.guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        atomic_write_bytes(tmp_path / "run.json", b"theirs")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "run.json").exists()


def test_t15_a_link_at_the_final_name_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run.json").symlink_to(victim)
    atomic_write_bytes(tmp_path / "run.json", b"ours")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "run.json").is_symlink()


def test_a21_file_then_rename_then_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(fd: int) -> None:
        told.append("dir" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")  # noqa: PTH112
        fsync(fd)

    def note_replace(self: Path, target: Path) -> Path:
        told.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    atomic_write_bytes(tmp_path / "x", b"1")
    assert told == ["file", "rename", "dir"]


def test_b1_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 128 * 1024) as disk:
        atomic_write_bytes(disk / "x", b"old")
        with pytest.raises(ResourceError, match=r"the disk is full: 200 kB needed \(200000 bytes\)") as caught:
            atomic_write_bytes(disk / "x", b"n" * 200_000)
        assert caught.value.code == "RS-001"
        assert caught.value.exit_code == 7
        assert (disk / "x").read_bytes() == b"old"
        assert [p.name for p in disk.iterdir()] == ["x"]


def test_b2_too_little_space_is_told_before_work(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "yet" / "made", 1000)
    with pytest.raises(ResourceError, match="not enough room") as caught:
        require_free_space(tmp_path / "not" / "yet" / "made", 10**18)
    assert f"({10**18} bytes)" in caught.value.what
    assert f"{human_bytes(free_bytes(tmp_path))[:2]}" in caught.value.what


def test_b4_a_limit_on_file_size_is_told_apart(tmp_path: Path) -> None:
    # In a process of its own: the limit would hold for the rest of the tests.
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.errors import ResourceError\n"
        "from pipeline.store.files import atomic_write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try:\n    atomic_write_bytes(Path(sys.argv[1]) / 'x', b'n' * 5000)\n"
        "except ResourceError as e:\n    print(e)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "a limit on the size of one file was reached (ulimit -f)" in told.stdout
    assert list(tmp_path.iterdir()) == []


def test_b4_quota_is_told_apart_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="quota"), disk_full_as_error(tmp_path):
        raise OSError(errno.EDQUOT, "x")
    with pytest.raises(PermissionError), disk_full_as_error(tmp_path):
        raise PermissionError(errno.EACCES, "x")


def test_private_folders_are_private_and_real(tmp_path: Path) -> None:
    assert private_folder(tmp_path / "a").stat().st_mode & 0o777 == 0o700
    private_folder(tmp_path / "a")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for bad in ("file", "link", "loop", "file/below"):
        with pytest.raises(UsageError, match="CF-002"):
            private_folder(tmp_path / bad)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (12_345_678, "12.3 MB"), (10**13, "10 TB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text
