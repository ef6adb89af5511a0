"""One of several equal parts of a list: of a batch's scenes, or of a scene's tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Every `count`-th one, from the `index`-th on."""

    index: int
    """From 0."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """From `3/8`.

        Raises:
            UsageError: CF-007.
        """
        index, slash, count = text.partition("/")
        if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
            return cls(index=int(index), count=int(count))
        raise UsageError(
            f"--share {text!r} is no share, expected I/N with I from 0 to N - 1",
            code="CF-007",
            title="Command line is wrong",
            fix="write --share 0/8 for the first of eight",
        )

    def of(self, items: Sequence[_T]) -> list[_T]:
        """Its items."""
        return list(items[self.index :: self.count])
