"""Files that are either whole or absent: atomic replacement, directory fsync, free space."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import secrets
import shutil
import stat
from typing import TYPE_CHECKING

from pipeline.errors import ResourceError, UsageError, visible
from pipeline.syncpoint import reached

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# EFBIG: a file-size limit (ulimit -f); EDQUOT: the user's share of a file system that is not full itself.
_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a limit on the size of one file was reached (ulimit -f)",
}


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged process may still write where `folder` is, or where it would be made."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists."""
    probe = folder.absolute()
    while not probe.exists() and probe != probe.parent:
        probe = probe.parent
    return probe


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse a run that cannot fit, before it starts.

    Args:
        folder: Where the bytes will go; need not exist yet.
        needed_bytes: Estimate of what will be written there, all at once.

    Raises:
        ResourceError: RS-001, fewer bytes are free.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        raise disk_full(folder, needed_bytes=needed_bytes, reason="not enough room for what this run will write")


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, share their free space."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def disk_full(folder: Path, *, needed_bytes: int | None = None, reason: str = "the disk is full") -> ResourceError:
    """The RS-001 error with the figures of this moment; call it before temporary files are removed."""
    free = free_bytes(folder)
    needed = f"{human_bytes(needed_bytes)} needed ({needed_bytes} bytes), " if needed_bytes is not None else ""
    return ResourceError(
        f"{reason}: {needed}{human_bytes(free)} free ({free} bytes)",
        code="RS-001",
        title="Out of disk",
        where=str(folder),
        fix="free some space, or choose a roomier place with --scratch or -o; the same command then continues",
    )


@contextlib.contextmanager
def disk_full_as_error(folder: Path, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn ENOSPC, EDQUOT and EFBIG of the block into RS-001; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise disk_full(folder, needed_bytes=needed_bytes, reason=_NO_SPACE[error.errno]) from error


@contextlib.contextmanager
def open_files_as_error() -> Iterator[None]:
    """Turn the limit on open files, however deep in the causes of an error, into RU-002; others pass unchanged."""
    try:
        yield
    except Exception as error:
        if not _ran_out_of_files(error):
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise ResourceError(
            f"this process may have {limit} files open at once, and needs more",
            code="RU-002",
            title="Too many open files",
            fix="raise it, such as with `ulimit -n 1024`, and run the same command again: finished tiles are kept",
        ) from error


def _ran_out_of_files(error: BaseException) -> bool:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        link = link.__cause__ or link.__context__
    return any(isinstance(e, OSError) and e.errno in _NO_FILES for e in seen) or any(
        os.strerror(errno.EMFILE) in str(e) for e in seen
    )


_NO_FILES = {errno.EMFILE, errno.ENFILE}


def human_bytes(count: int) -> str:
    """`count` in decimal units, three digits: 12.3 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":  # noqa: PLR2004 - decimal units
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def fsync_path(path: Path) -> None:
    """Push a file or directory to the disk, so that a rename survives a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        reached("before-fsync")
        os.fsync(fd)
        reached("after-fsync")
    except OSError as error:  # some network file systems cannot sync a directory
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(fd)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data`, or leave it as it was.

    The temporary file lies in the same directory under a random name and is opened so that nobody's link is followed.

    Raises:
        ResourceError: RS-001, the disk, quota or file-size limit is reached.
        OSError: Anything else.
    """
    temp = path.with_name(f".{path.name[:100]}.{secrets.token_hex(_NONCE_BYTES)}.tmp")
    fd = -1
    try:
        with disk_full_as_error(path.parent, needed_bytes=len(data)):
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            write_all(fd, data)
            reached("before-fsync")
            os.fsync(fd)
            reached("after-fsync")
            os.close(fd)
            fd = -1
            reached("before-rename")
            temp.replace(path)
            reached("after-rename")
            fsync_path(path.parent)
    finally:
        if fd >= 0:
            os.close(fd)
        temp.unlink(missing_ok=True)


def remove_temporaries(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers of `atomic_write_bytes` left; call where no other writer can be.

    Args:
        folder: Where they wrote.
        name: Of the file that they would have replaced; None for all.
    """
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and name in (None, match[1]):
            path.unlink(missing_ok=True)


_NONCE_BYTES = 8
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)


def write_all(fd: int, data: bytes) -> None:
    """`os.write` until everything is out: a nearly full disk takes a part and only then complains."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def atomic_write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace `path` with `value` as JSON; see `to_bytes`.

    Raises:
        ResourceError: RS-001, no space.
        ValueError, TypeError: `value` is not JSON.
    """
    atomic_write_bytes(path, to_bytes(value))


def to_bytes(value: Mapping[str, object]) -> bytes:
    """Readable UTF-8 JSON, keys in the given order; NaN and infinity are refused.

    Raises:
        ValueError, TypeError: `value` is not JSON.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2).encode() + b"\n"


def keep_first(path: Path, data: bytes) -> None:
    """Write `path` unless it is there; of several that try at once, one succeeds and the others leave it alone."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}.first")
    atomic_write_bytes(made, data)
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            made.replace(path)
    finally:
        made.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, object] | None:
    """The JSON object in `path`; None where the file is absent, torn or something else."""
    try:
        return from_bytes(path.read_bytes())
    except OSError:
        return None


def from_bytes(data: bytes | None) -> dict[str, object] | None:
    """The JSON object that was read; None where nothing was, or something torn or else."""
    try:
        value = None if data is None else json.loads(data.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def private_folder(path: Path, *, option: str = "-o") -> Path:
    """Make `path`, readable by its owner only; an existing one is kept.

    Args:
        path: The folder.
        option: The command's option that put it there, for the error.

    Raises:
        UsageError: CF-002, it is a link or a file, or cannot be made.
    """
    try:
        mode = _made_or_found(path)
    except OSError as error:
        raise cannot_write(path, error.strerror or str(error), option=option) from error
    if not stat.S_ISDIR(mode):
        raise cannot_write(path, "it is a link or a file, not a folder of our own", option=option)
    return path


def _made_or_found(path: Path) -> int:
    """Mode of what is at `path`, a folder made now unless there was something."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True)
        with contextlib.suppress(FileNotFoundError):  # another run that ended just now has removed it again
            return path.lstat().st_mode
    raise FileNotFoundError(errno.ENOENT, "a folder above it is a link to nowhere", str(path))


_TRIES = 1000


def cannot_write(folder: Path, reason: str, *, option: str = "-o") -> UsageError:
    """The CF-002 error for `folder`, which `option` chose."""
    kind = "scratch" if option == "--scratch" else "output"
    return UsageError(
        f"cannot write to {kind} folder {visible(str(folder))} as user id {os.geteuid()}: {reason}",
        code="CF-002",
        title=f"Cannot write to the {kind} folder",
        where=str(folder),
        fix=f"choose another folder with {option}, or change its permissions",
    )
