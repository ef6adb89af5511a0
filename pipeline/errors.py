"""Everything that can go wrong and is not our bug: one small family, one printed form.

    PipelineError
    ├── UsageError           exit 2   a wrong option or settings file, before any work
    ├── InputError           exit 3   the scene cannot be used
    ├── ModelError           exit 4   the model cannot be used or is not trusted
    ├── OutputError          exit 5   the output belongs to something else, or a resume does not match
    ├── ResourceError        exit 7   out of disk, memory or GPU memory
    ├── InfrastructureError  exit 8   storage or cluster cannot be reached
    ├── Interrupted          exit 75  stopped by a signal or time limit; resumable
    └── (KeyboardInterrupt   exit 130 Ctrl-C; resumable)

Every error carries a code that `docs/errors.md` explains, what was got and expected, where, and how to fix it. Secrets
are taken out of its texts when it is made.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, ClassVar

from pipeline.redact import redact

if TYPE_CHECKING:
    from collections.abc import Iterable


class PipelineError(Exception):
    """An expected failure, told in the form that the command line prints.

    Args:
        what: What was got and what was expected, one sentence.
        code: Stable identifier such as `IN-012`; explained in `docs/errors.md`.
        title: A few words that name the kind of failure.
        where: File, window, key or command concerned; empty when there is none.
        fix: What to do, as something that can be typed or changed.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, code: str, title: str, where: str = "", fix: str = "") -> None:
        what = redact(what)
        super().__init__(what)
        self.what = what
        self.code = code
        self.title = title
        self.where = redact(where)
        self.fix = redact(fix)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling: errors travel from workers to the client."""
        return _rebuild, (type(self), self.what, self.code, self.title, self.where, self.fix)

    def __str__(self) -> str:
        """The block without its first word, for people who catch it in Python."""
        where = f" ({self.where})" if self.where else ""
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"[{self.code}] {self.what}{where}{fix}"

    def block(self) -> str:
        """The block that the command line prints on stderr, several lines, without colour."""
        rows = [f"ERROR  {self.code}  {self.title}", f"  what   {self.what}"]
        if self.where:
            rows.append(f"  where  {visible(self.where)}")
        if self.fix:
            rows.append(f"  fix    {self.fix}")
        rows.append(f"  more   docs/errors.md#{self.code.lower()}")
        return "\n".join(visible(line) for row in rows for line in row.split("\n"))

    def to_dict(self) -> dict[str, str | int]:
        """The same fields for `--json`."""
        return {
            "code": self.code,
            "title": self.title,
            "what": self.what,
            "where": self.where,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }


def _rebuild(kind: type[PipelineError], what: str, code: str, title: str, where: str, fix: str) -> PipelineError:
    return kind(what, code=code, title=title, where=where, fix=fix)


def visible(text: str) -> str:
    """Control characters as escapes, and bytes that are no UTF-8: a file's name must not move somebody's cursor."""
    return "".join(f"\\x{ord(c) & 0xFF:02x}" if unicodedata.category(c) in {"Cc", "Cs"} else c for c in text)


def require_utf8(paths: Iterable[str]) -> None:
    """Refuse paths whose bytes are no UTF-8: JSON, and most formats of polygons, cannot name them.

    Raises:
        UsageError: CF-080, with the first of them.
    """
    wrong = [visible(path) for path in paths if any(unicodedata.category(c) == "Cs" for c in path)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UsageError(
            f"{wrong[0]}{more}: the bytes of this path are no UTF-8",
            code="CF-080",
            title="Path is not UTF-8",
            where=wrong[0],
            fix="rename the file or folder, or link it under another name (ln -s)",
        )


class UsageError(PipelineError, ValueError):
    """A wrong option, argument or settings file; nothing has been done yet."""

    exit_code = 2


class InputError(PipelineError, ValueError):
    """The scene cannot be used."""

    exit_code = 3


class ModelError(PipelineError, ValueError):
    """The model cannot be used, or is not trusted."""

    exit_code = 4


class OutputError(PipelineError, OSError):
    """The output place is taken, locked, or belongs to another run."""

    exit_code = 5

    # OSError would swallow a single argument's text into args only; keep ours.
    __str__ = PipelineError.__str__


class ResourceError(PipelineError, RuntimeError):
    """Out of disk, memory or GPU memory."""

    exit_code = 7


class InfrastructureError(PipelineError, ConnectionError):
    """Storage or cluster cannot be reached after retries."""

    exit_code = 8

    __str__ = PipelineError.__str__


class Interrupted(PipelineError):  # noqa: N818 - an ending, not an error
    """Stopped by SIGTERM, SIGUSR1 or a time limit; the same command continues."""

    exit_code = 75
