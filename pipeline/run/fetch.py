"""Files that are read whole: fetched from a server into a private folder first, results sent back from there."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.access import Access
from pipeline.bucket import Bucket, NoObjectError
from pipeline.errors import InputError, OutputError, PipelineError
from pipeline.location import is_remote, parse_location
from pipeline.scene.remote import remote_file
from pipeline.store.files import disk_full_as_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.location import Location
    from pipeline.scene.remote import RemoteFile

_PART_BYTES = 8 * 2**20
_CHANGED = "IN-015"


class Workplace:
    """A private folder on this machine, made when first needed."""

    def __init__(self, access: Access | None, stack: contextlib.ExitStack) -> None:
        self._access = access or Access()
        self._stack = stack
        self._folders = 0

    def local(self, place: str | Path | Location, *, beside: Sequence[str] = ()) -> Path:
        """A path to read from: of the file itself, or of its copy.

        Args:
            place: Path or address.
            beside: Endings of names of files that come along where they exist.

        Raises:
            InputError: IN-040 and others, as for scenes; IN-015, it changed while it was read.
            ResourceError: RS-001, no space.
        """
        if not is_remote(place):
            return Path(place)  # type: ignore[arg-type]
        file = remote_file(place, self._access)
        path = self.folder() / (file.location.name or "file")
        _download(file, path)
        for ending in beside:
            self.fetch(file.location.parent / (file.location.name + ending), path.with_name(path.name + ending))
        return path

    def fetch(self, place: Path | Location, path: Path) -> None:
        """Copy a file to `path`, if there is one.

        Raises:
            InputError: IN-015, it changed while it was read.
            ResourceError: RS-001, no space.
            InfrastructureError: ST-010 to ST-013.
        """
        try:
            _download(remote_file(place, self._access), path)
        except InputError as error:
            if error.code == _CHANGED:
                raise

    def folder(self) -> Path:
        """A new folder in it."""
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="scenemask-")))

    @contextlib.contextmanager
    def output(self, place: str | Path | Location, *, overwrite: bool) -> Iterator[Path]:
        """A path to write to; what lies there when the block ends is sent, if `place` is an address.

        Raises:
            OutputError: OU-030, there is an object of that name.
            InfrastructureError: ST-010 to ST-013.
        """
        if not is_remote(place):
            yield Path(place)  # type: ignore[arg-type]
            return
        location = parse_location(place, schemes=("s3",))
        bucket = Bucket(location.host, self._access.resolved())
        if not overwrite:
            _refuse_existing(bucket, location)
        path = self.folder() / location.name
        yield path
        bucket.put_file(location.key, path)


@contextlib.contextmanager
def workplace(access: Access | None) -> Iterator[Workplace]:
    """Copies last as long as the block."""
    with contextlib.ExitStack() as stack:
        yield Workplace(access, stack)


def _download(file: RemoteFile, path: Path) -> None:
    """All parts of one version, or nothing."""
    facts = file.facts()
    try:
        with disk_full_as_error(path.parent, needed_bytes=facts.size), path.open("xb") as out:
            for start in range(0, facts.size, _PART_BYTES):
                out.write(file.read(start, min(start + _PART_BYTES, facts.size), version=facts))
    except PipelineError:
        path.unlink(missing_ok=True)
        raise


def _refuse_existing(bucket: Bucket, location: Location) -> None:
    with contextlib.suppress(NoObjectError):
        bucket.head(location.key)
        raise OutputError(
            "the object exists",
            code="OU-030",
            title="Output exists",
            where=str(location),
            fix="choose another name, or allow overwriting (--overwrite)",
        )
