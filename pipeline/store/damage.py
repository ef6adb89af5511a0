"""The one error that is healed by computing again: stored pixels are not those that were written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.grid import Window


class DamagedTilesError(InfrastructureError):
    """Stored pixels are not those that were written; compute the tiles with these cores again."""

    def __init__(
        self, what: str, *, code: str, title: str, where: str = "", fix: str = "", windows: Sequence[Window] = ()
    ) -> None:
        super().__init__(what, code=code, title=title, where=where, fix=fix)
        self.windows = tuple(windows)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the windows on the way from a worker."""
        return _rebuild, (self.what, self.code, self.title, self.where, self.fix, self.windows)


def _rebuild(what: str, code: str, title: str, where: str, fix: str, windows: tuple[Window, ...]) -> DamagedTilesError:
    return DamagedTilesError(what, code=code, title=title, where=where, fix=fix, windows=windows)


def list_windows(windows: Sequence[Window]) -> str:
    """The first few windows, for a message."""
    more = f" and {len(windows) - 3} more" if len(windows) > 3 else ""  # noqa: PLR2004 - a line's worth
    return "; ".join(str(w) for w in windows[:3]) + more
