"""Errors on their way from a worker to the client: causes become text, so that pickling can lose nothing."""

from __future__ import annotations

import pickle
from typing import Any

from pipeline.redact import redact


def portable(error: Exception) -> Exception:
    """An error that survives pickling, with every field and with its causes as text.

    Dask pickles causes and contexts along. Some of GDAL's can be pickled but not restored, and the client would then
    learn of that instead of what happened.

    Args:
        error: As it was caught; left as it is. Raise the result outside the `except` block, or Python adds `error` as
            its context.
    """
    story = _story(error)
    copy = _copy(error)
    copy.__cause__ = RuntimeError(story) if story else None
    for note in getattr(error, "__notes__", ()):
        copy.add_note(note)
    return copy.with_traceback(error.__traceback__)


def _copy(error: Exception) -> Exception:
    try:
        # Through its own reduction, which keeps all fields; causes are no part of it.
        reduced: Any = error.__reduce__()
        copy = reduced[0](*reduced[1])
        pickle.loads(pickle.dumps(copy))  # noqa: S301 - what we have just written
    except Exception:  # noqa: BLE001 - whatever a foreign class does in its constructor
        return RuntimeError(redact(f"{type(error).__name__}: {error}"))
    return copy if isinstance(copy, Exception) else RuntimeError(str(error))


def _story(error: BaseException) -> str:
    """The chain of causes, one a line, nearest first."""
    lines = []
    cause = error.__cause__ or error.__context__
    while cause is not None:
        lines.append(redact(f"{type(cause).__name__}: {cause}"))
        cause = cause.__cause__ or cause.__context__
    return "\n".join(lines)
