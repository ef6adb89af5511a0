"""What a failing disk says, in our words."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa
import pyogrio.errors

from pipeline.errors import OutputError, PipelineError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NO_PLACE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST})
_WRITE_ERRORS = (
    OSError,
    pa.ArrowException,
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyogrio.errors.FeatureError,
    pyogrio.errors.FieldError,
    pyogrio.errors.GeometryError,
)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failed write to `path` into an error that says what to do.

    Raises:
        OutputError: OU-031, the place may not be written or does not exist.
        ResourceError: RS-002, anything else: a full disk, a quota, a limit on file size.
    """
    try:
        yield
    except PipelineError:
        raise
    except _WRITE_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _NO_PLACE:
            raise OutputError(
                f"cannot write here: {error}",
                code="OU-031",
                title="Output place cannot be written",
                where=str(path),
                fix="choose a folder that exists and that you may write to",
            ) from error
        raise ResourceError(
            f"writing stopped before the end: {error}",
            code="RS-002",
            title="Disk full or write failed",
            where=str(path),
            fix="free disk space (or raise the quota) and run the same command again; nothing was left half written",
        ) from error
