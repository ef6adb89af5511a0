"""Where results go: a folder on disk, or a bucket, for which they are made in a folder of this machine and sent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.bucket import Bucket, NoObjectError, require_obstore
from pipeline.errors import UsageError
from pipeline.location import Location, is_remote, parse_location
from pipeline.model.cache import cache_folder
from pipeline.run.scene_run import inspect_for
from pipeline.run.settings import access_of
from pipeline.store import (
    OutputState,
    Staging,
    atomic_write_json,
    changed_files,
    foreign_output,
    inspect_output,
    private_folder,
    read_json,
)
from pipeline.store.object_lock import BucketLock
from pipeline.store.runfile import RESULT_NAMES, RUN_FILE, described_files, is_result_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from pipeline.run.settings import SegmentSettings


LOCK = ".scenemask/lock.json"


class Output(Protocol):
    """What a run needs of the place of its results."""

    @property
    def place(self) -> Path | Location:
        """Where people find them."""
        ...

    @property
    def folder(self) -> Path:
        """Where they are made, and where an unfinished run lies."""
        ...

    def inspect(self, *, overwrite: bool) -> OutputState:
        """What is there.

        Raises:
            OutputError: OU-001, results that no run accounts for, and they are not to be replaced.
        """
        ...

    def changed(self, files: Mapping[str, Mapping[str, object]]) -> list[str]:
        """Names of the described results that are gone or no longer the same."""
        ...

    def locked(self) -> AbstractContextManager[object]:
        """Holds off runs on machines that share no disk with this one.

        Raises:
            OutputError: OU-002.
        """
        ...

    def staging(self) -> Staging:
        """Where results are made before they appear all at once; while locked."""
        ...

    def refuse_input(self, scene: object) -> None:
        """Refuse a scene that the results would replace, where the folder does not tell."""
        ...

    def tidy(self) -> None:
        """Remove what a finished run leaves behind."""
        ...


def output_at(out_dir: str | Path | Location, settings: SegmentSettings) -> Output:
    """The place that `-o` names.

    Raises:
        UsageError: CF-050, an address that cannot be written to; CF-053, an extra is missing.
    """
    if not is_remote(out_dir):
        return FolderOutput(Path(os.fspath(out_dir)).absolute())  # type: ignore[arg-type]
    require_obstore()
    access = access_of(settings)
    place = parse_location(out_dir, schemes=("s3",))
    identity = hashlib.sha256(f"{access.endpoint} {place}".encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9-]+", "-", place.name or place.host)[:40].strip("-")
    folder = _working_root(settings) / f"{name}-{identity}"
    return BucketOutput(place, private_folder(folder, option="--scratch"), Bucket(place.host, access))


def _working_root(settings: SegmentSettings) -> Path:
    """Private, and the same for the same command, so that it resumes."""
    folder = cache_folder() / "outputs" if settings.scratch is None else settings.scratch / "scenemask-outputs"
    return private_folder(folder, option="--scratch")


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """Results on a disk, or on what looks like one."""

    folder: Path

    @property
    def place(self) -> Path:
        """See `Output`."""
        return self.folder

    def inspect(self, *, overwrite: bool) -> OutputState:
        """See `Output`."""
        return inspect_for(self.folder, overwrite=overwrite)

    def changed(self, files: Mapping[str, Mapping[str, object]]) -> list[str]:
        """See `Output`."""
        return changed_files(self.folder, files)

    def locked(self) -> AbstractContextManager[object]:
        """Nothing: the run's lock lies in the folder."""
        return contextlib.nullcontext()

    def staging(self) -> Staging:
        """See `Output`."""
        return Staging(self.folder)

    def refuse_input(self, scene: object) -> None:
        """Nothing: paths are compared when the run is opened."""

    def tidy(self) -> None:
        """Nothing: the folder is the result."""


@dataclass(slots=True)
class BucketOutput:
    """Results in a bucket. What is there is read by key, never by listing: listings lag on some stores."""

    place: Location
    folder: Path
    bucket: Bucket
    lock: BucketLock | None = None
    """Held while a run writes here."""

    def inspect(self, *, overwrite: bool) -> OutputState:
        """See `Output`; an unfinished run lies on the machine that began it."""
        run = read_object(self.bucket, self.key(RUN_FILE))
        plan = inspect_output(self.folder).plan
        if run is not None or plan is not None:
            return OutputState(kind="unfinished" if run is None else "complete", run=run, plan=plan, names=())
        names = tuple(name for name in RESULT_NAMES if self._exists(name))
        state = OutputState(kind="foreign" if names else "empty", run=None, plan=None, names=names)
        if names and not overwrite:
            raise foreign_output(self.place, state)
        return state

    def changed(self, files: Mapping[str, Mapping[str, object]]) -> list[str]:
        """See `Output`; told by size and ETag."""
        return [name for name, told in files.items() if not self._is_same(name, told)]

    def locked(self) -> AbstractContextManager[object]:
        """See `Output`."""
        self.lock = BucketLock(self.bucket, self.key(LOCK))
        return self.lock

    def staging(self) -> Staging:
        """See `Output`."""
        return BucketStaging(self)

    def tidy(self) -> None:
        """Remove the working folder once nothing is in it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def refuse_input(self, scene: object) -> None:
        """A run must not replace what it reads.

        Raises:
            UsageError: CF-008.
        """
        if not is_remote(scene):
            return
        location = parse_location(scene)  # type: ignore[arg-type]
        if location == self.place.child(location.name) and is_result_name(location.name):
            raise UsageError(
                f"the scene is {location}, which this run would replace; expected one outside its results",
                code="CF-008",
                title="Input lies among the results",
                where=str(location),
                fix="choose another prefix with -o",
            )

    def key(self, name: str) -> str:
        """Key of a result."""
        return self.place.child(name).key

    def _exists(self, name: str) -> bool:
        try:
            self.bucket.head(self.key(name))
        except NoObjectError:
            return False
        return True

    def _is_same(self, name: str, told: Mapping[str, object]) -> bool:
        try:
            found = self.bucket.head(self.key(name))
        except NoObjectError:
            return False
        return found.size == told.get("bytes") and found.etag == told.get("etag", found.etag)


class BucketStaging(Staging):
    """Results made on this machine, sent on `commit`.

    Args:
        output: Where to.
    """

    def __init__(self, output: BucketOutput) -> None:
        super().__init__(output.folder)
        self._output = output

    def commit(self, names: Sequence[str], run: Mapping[str, object]) -> None:
        """Send the staged results: the old `run.json` goes first, the new one comes last.

        Results of an older run that the new one did not make are removed. Cut off half-way, calling it again, with
        files staged anew, finishes the work.

        Raises:
            InfrastructureError: ST-010 to ST-013; what was sent of the file on its way is taken back.
            OutputError: OU-003, the lock was taken over.
        """
        assert self._output.lock is not None
        held = self._output.lock.ensure_held
        held()
        bucket, key = self._output.bucket, self._output.key
        replaced = described_files(read_json(self.begun) or {})
        replaced |= described_files(read_object(bucket, key(RUN_FILE)) or {})
        atomic_write_json(self.begun, {"files": dict.fromkeys(sorted({*replaced, *names}))})
        bucket.delete(key(RUN_FILE))
        etags = {}
        for name in names:
            bucket.put_file(key(name), self.folder / name)
            etags[name] = bucket.head(key(name)).etag
            held()  # before the next step, each of which may take long
        for name in replaced - set(names):
            bucket.delete(key(name))
        files = run.get("files")
        if isinstance(files, dict):
            run = {**run, "files": {name: {**told, "etag": etags.get(name, "")} for name, told in files.items()}}
        text = json.dumps(run, ensure_ascii=False, allow_nan=False, indent=2)
        bucket.put(key(RUN_FILE), text.encode() + b"\n")
        self.begun.unlink()
        self.clear()


def read_object(bucket: Bucket, key: str) -> dict[str, object] | None:
    """The JSON object under a key; None where it is absent or something else."""
    try:
        value = json.loads(bucket.get(key)[0])
    except (NoObjectError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
