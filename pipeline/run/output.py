"""Where results go: a folder on disk, or a bucket, for which they are made in a folder of this machine and sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.bucket import Bucket, NoObjectError, require_obstore
from pipeline.errors import InfrastructureError, UsageError
from pipeline.location import Location, is_remote, parse_location
from pipeline.model.cache import cache_folder
from pipeline.run.scratch import shared_place
from pipeline.store import (
    Folder,
    OutputState,
    Prefix,
    Staging,
    atomic_write_json,
    changed_files,
    foreign_output,
    inspect_output,
    private_folder,
    read_json,
    read_object,
    to_bytes,
)
from pipeline.store.object_lock import BucketLock, Claim
from pipeline.store.runfile import (
    PLAN_FILE,
    RESULT_NAMES,
    RUN_FILE,
    SCRATCH_FOLDER,
    described_files,
    is_result_name,
    refuse_changed,
    state_of,
)
from pipeline.store.sealed import sealed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from pipeline.access import Access
    from pipeline.run.settings import SegmentSettings
    from pipeline.store import Place
    from pipeline.store.lock import Owner


LOCK = f"{SCRATCH_FOLDER}/lock.json"


class Output(Protocol):
    """What a run needs of the place of its results."""

    @property
    def place(self) -> Path | Location:
        """Where people find them."""
        ...

    @property
    def folder(self) -> Path:
        """Where they are made."""
        ...

    @property
    def home(self) -> Place:
        """Where an unfinished run keeps its plan."""
        ...

    def inspect(self, *, overwrite: bool) -> OutputState:
        """What is there.

        Raises:
            OutputError: OU-001, results that no run accounts for, and they are not to be replaced.
        """
        ...

    def look(self) -> OutputState:
        """What is there, whosever it is."""
        ...

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Bytes of results that are there."""
        ...

    def changed(self, files: Mapping[str, Mapping[str, object]]) -> list[str]:
        """Names of the described results that are gone or no longer the same."""
        ...

    def holder(self) -> tuple[Owner, bool] | None:
        """Who on such a machine holds it, and whether it shows life."""
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

    def delivery(self) -> Delivery | None:
        """For a worker that makes results on its own machine; None where it makes them in `folder`. While locked."""
        ...

    def refuse_input(self, scene: object) -> None:
        """Refuse a scene that the results would replace, where the folder does not tell."""
        ...

    def tidy(self) -> None:
        """Remove what a finished run leaves behind."""
        ...


def output_at(out_dir: str | Path | Location, access: Access, scratch: Path | str | None = None) -> Output:
    """The place that `-o` names.

    Args:
        out_dir: Path or address.
        access: How a bucket is reached.
        scratch: `--scratch`, where what is made for a bucket lies meanwhile if it is a folder.

    Raises:
        UsageError: CF-050, an address that cannot be written to; CF-053, an extra is missing.
    """
    if not is_remote(out_dir):
        return FolderOutput(Path(os.fspath(out_dir)).absolute())  # type: ignore[arg-type]
    require_obstore()
    access = access.resolved()
    place = parse_location(out_dir, schemes=("s3",))
    bucket = Bucket(place.host, access)
    identity = hashlib.sha256(f"{access.endpoint_of('s3')} {place}".encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9-]+", "-", place.name or place.host)[:40].strip("-")
    folder = private_folder(_working_root(scratch) / f"{name}-{identity}", option="--scratch")
    return BucketOutput(place, folder, bucket, shared=isinstance(scratch, str))


def tiles_under(root: Path | Location, settings: SegmentSettings) -> Place:
    """What the tiles of all outputs under `root` lie in, made if absent: workers must see it.

    Raises:
        UsageError: CF-002, CF-053.
    """
    shared = shared_place(settings)
    if shared is not None:
        shared.make(option="--scratch")
        return shared
    return Folder(root if isinstance(root, Path) else _working_root(settings.scratch))


def _working_root(given: Path | str | None) -> Path:
    """Private, and the same for the same command, so that it resumes."""
    folder = given / "scenemask-outputs" if isinstance(given, Path) else cache_folder() / "outputs"
    return private_folder(folder, option="--scratch")


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """Results on a disk, or on what looks like one."""

    folder: Path

    @property
    def place(self) -> Path:
        """See `Output`."""
        return self.folder

    @property
    def home(self) -> Folder:
        """See `Output`."""
        return Folder(self.folder / SCRATCH_FOLDER)

    def inspect(self, *, overwrite: bool) -> OutputState:
        """See `Output`."""
        return _looked_at(self, overwrite=overwrite)

    def look(self) -> OutputState:
        """See `Output`."""
        return inspect_output(self.folder)

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """See `Output`."""
        return {name: (self.folder / name).stat().st_size for name in names}

    def changed(self, files: Mapping[str, Mapping[str, object]]) -> list[str]:
        """See `Output`."""
        return changed_files(self.folder, files)

    def holder(self) -> None:
        """Nobody: the run's lock lies in the folder."""

    def locked(self) -> AbstractContextManager[object]:
        """Nothing: the run's lock lies in the folder."""
        return contextlib.nullcontext()

    def staging(self) -> Staging:
        """See `Output`."""
        return Staging(self.folder)

    def delivery(self) -> None:
        """See `Output`."""

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
    shared: bool = False
    """Whether tiles lie where other machines see them."""
    lock: BucketLock | None = None
    """Held while a run writes here."""
    _home: Place | None = None

    @property
    def home(self) -> Place:
        """In the bucket where tiles lie in one, or where another machine has begun so; else in `folder`."""
        if self._home is None:
            there = Prefix.at(self.place / SCRATCH_FOLDER, self.bucket)
            shared = self.shared or there.has(PLAN_FILE)
            self._home = there if shared else Folder(self.folder / SCRATCH_FOLDER)
        return self._home

    def inspect(self, *, overwrite: bool) -> OutputState:
        """See `Output`."""
        return _looked_at(self, overwrite=overwrite)

    def look(self) -> OutputState:
        """See `Output`."""
        place = Prefix.at(self.place, self.bucket)
        plan = read_object(self.home, PLAN_FILE)  # first: where it has gone, run.json has come
        run = read_object(place, RUN_FILE)
        told = run is not None or plan is not None

        def find_names() -> tuple[str, ...]:
            return () if told else tuple(name for name in RESULT_NAMES if place.has(name))

        return state_of(run, plan, find_names)

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """See `Output`."""
        return {name: self.bucket.head(self.key(name)).size for name in names}

    def changed(self, files: Mapping[str, Mapping[str, object]]) -> list[str]:
        """See `Output`; told by size and ETag."""
        return [name for name, told in files.items() if not self._is_same(name, told)]

    def holder(self) -> tuple[Owner, bool] | None:
        """See `Output`."""
        return BucketLock(self.bucket, self.key(LOCK)).holder()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """See `Output`."""
        self.lock = BucketLock(self.bucket, self.key(LOCK))
        with self.lock:
            self._home = None  # another machine may have begun, or ended, since it was chosen
            yield

    def staging(self) -> Staging:
        """See `Output`."""
        return BucketStaging(self)

    def delivery(self) -> Delivery:
        """See `Output`."""
        assert self.lock is not None
        return Delivery(self.bucket, self.place, self.lock.claim())

    def tidy(self) -> None:
        """Remove the working folder once nothing is in it."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()
            self.folder.parent.rmdir()

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

    def _is_same(self, name: str, told: Mapping[str, object]) -> bool:
        try:
            found = self.bucket.head(self.key(name))
        except NoObjectError:
            return False
        return found.size == told.get("bytes") and found.etag == told.get("etag", found.etag)


def _looked_at(output: Output, *, overwrite: bool) -> OutputState:
    state = output.look()
    if not overwrite:
        refuse_changed(output.place, state)
    if state.kind == "foreign" and not overwrite:
        raise foreign_output(output.place, state)
    return state


@dataclass(frozen=True, slots=True)
class Delivery:
    """Sends results to a bucket, from whichever machine has made them."""

    bucket: Bucket
    place: Location
    claim: Claim
    """Of the run that holds the lock."""

    def send(self, folder: Path, names: Sequence[str]) -> dict[str, str]:
        """Send files under their final names; without `run.json` beside them they are nobody's results yet.

        Returns:
            Name -> ETag.

        Raises:
            InfrastructureError: ST-010 to ST-013; what was sent of the file on its way is taken back.
            OutputError: OU-003, the lock was taken over.
        """
        etags = {}
        for name in names:
            self.claim.ensure_held()  # each of them may take long
            key = self.place.child(name).key
            self.bucket.put_file(key, folder / name)
            etags[name] = self.bucket.head(key).etag
        self.claim.ensure_held()
        return etags


class BucketStaging(Staging):
    """Results made on this machine, sent on `commit`.

    Args:
        output: Where to.
    """

    def __init__(self, output: BucketOutput) -> None:
        super().__init__(output.folder)
        self._output = output

    def commit(
        self, names: Sequence[str], run: Mapping[str, object], *, etags: Mapping[str, str] | None = None
    ) -> None:
        """Send the staged results: the old `run.json` goes first, the new one comes last.

        Results of an older run that the new one did not make are removed. Cut off half-way, calling it again, with
        files staged anew, finishes the work.

        Args:
            names: Staged results.
            run: Content of `run.json`.
            etags: Of results that a worker has sent already, with `Delivery`, where there were none before.

        Raises:
            InfrastructureError: ST-010 to ST-013; what was sent of the file on its way is taken back. ST-003, an object
                is no longer the one that was sent.
            OutputError: OU-003, the lock was taken over.
        """
        bucket, key, delivery = self._output.bucket, self._output.key, self._output.delivery()
        delivery.claim.ensure_held()
        if etags is None:
            replaced = described_files(read_json(self.begun) or {})
            replaced |= described_files(read_object(Prefix.at(self._output.place, bucket), RUN_FILE) or {})
            atomic_write_json(self.begun, {"files": dict.fromkeys(sorted({*replaced, *names}))})
            bucket.delete(key(RUN_FILE))
            etags = delivery.send(self.folder, names)
            for name in replaced - set(names):
                bucket.delete(key(name))
        else:
            self._refuse_others(etags)
        files = run.get("files")
        if isinstance(files, dict):
            run = {**run, "files": {name: {**told, "etag": etags.get(name, "")} for name, told in files.items()}}
        bucket.put(key(RUN_FILE), to_bytes(sealed(run)))
        self.begun.unlink(missing_ok=True)
        self.clear()

    def _refuse_others(self, etags: Mapping[str, str]) -> None:
        """A worker that was given up may have sent its own after the one whose word this is."""
        bucket, key = self._output.bucket, self._output.key
        changed = [name for name, etag in etags.items() if bucket.head(key(name)).etag != etag]
        if changed:
            raise InfrastructureError(
                f"{', '.join(changed)} are no longer the objects that were sent",
                code="ST-003",
                title="Results were sent twice",
                where=str(self._output.place),
                fix="run the same command again: finished tiles are kept, and the files are sent anew",
            )
