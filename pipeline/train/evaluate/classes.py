"""The classes of an evaluation: PRED's, and which of them each number or name of TRUTH means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.legend import Legend

MAX_VALUE = 65535
"""Largest class number that a raster may hold."""
MOST_CLASSES = 2048
"""More are no classes but something else, such as ids of objects; their confusion matrix would not fit either."""
IGNORE = "ignore"
"""What a class of TRUTH is recoded to, to be left out."""


@dataclass(frozen=True, slots=True)
class Classes:
    """What is told apart, in the order of PRED's numbers. An *index* is a position in this order."""

    values: tuple[int, ...]
    """PRED's pixel values."""
    names: tuple[str, ...]
    background: int | None = None
    """Index of the background, None where PRED names none."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> type[np.uint8 | np.uint16]:
        """Of arrays of indices."""
        return np.uint8 if len(self) <= 254 else np.uint16  # noqa: PLR2004 - two more numbers are taken

    @property
    def none(self) -> int:
        """Stands for "no class" in arrays of indices."""
        return int(np.iinfo(self.dtype).max)

    @property
    def unknown(self) -> int:
        """Stands for a number that is no class, which is an error."""
        return self.none - 1

    def index(self, text: str | int) -> int | None:
        """Of a class by its name or number; None where there is no such class."""
        if text in self.names:
            return self.names.index(str(text))
        value = int(text) if str(text).isdecimal() else -1
        return self.values.index(value) if value in self.values else None

    def __str__(self) -> str:
        return said(dict(zip(self.values, self.names, strict=True)))

    def table(self) -> NDArray[np.uint8 | np.uint16]:
        """PRED's value -> index."""
        table = np.full(MAX_VALUE + 1, self.unknown, self.dtype)
        table[list(self.values)] = np.arange(len(self))
        return table


def said(names: Mapping[int, str], *, most: int = 24) -> str:
    """`0 water, 1 land`: classes in a message."""
    shown = [f"{value} {name}" if name != str(value) else name for value, name in sorted(names.items())]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "") or "none"


def classes_of_legend(legend: Legend) -> Classes:
    """The classes that PRED says it has."""
    return Classes(tuple(c.value for c in legend), tuple(c.name for c in legend), legend.background)


def classes_of_values(values: Iterable[int]) -> Classes:
    """Classes without names, which are called by their numbers."""
    found = tuple(sorted(values))
    return Classes(found, tuple(map(str, found)))


def parse_classes(text: str | Sequence[str] | Mapping[int, str]) -> Classes:
    """`water,land` (numbered from 0) or `1=clear,2=cloud`.

    Raises:
        UsageError: EV-007, it is neither, or a class is named twice.
    """
    if isinstance(text, str):
        parts = [part.strip() for part in text.split(",") if part.strip()]
    else:
        parts = [f"{k}={v}" for k, v in text.items()] if hasattr(text, "items") else [str(part) for part in text]
    pairs = [part.split("=", 1) if "=" in part else [str(i), part] for i, part in enumerate(parts)]
    good = all(value.strip().isdecimal() and int(value) <= MAX_VALUE for value, _ in pairs)
    numbers = {int(value): name.strip() for value, name in pairs} if good else {}
    if not numbers or len(set(numbers.values())) != len(pairs):
        raise UsageError(
            f"classes are names in order or `number=name`, each once; got {text!r}",
            code="EV-007",
            title="Classes cannot be understood",
            fix='write --classes "clear,cloud" or --classes "1=clear,2=cloud"',
        )
    order = sorted(numbers)
    return Classes(tuple(order), tuple(numbers[value] for value in order))


@dataclass(frozen=True, slots=True)
class Recode:
    """What TRUTH's numbers and names mean in PRED's classes."""

    classes: Classes
    given: Mapping[str, int]
    """TRUTH's number or name, or `*` for all others -> index, or `classes.none` to leave it out."""

    def index(self, value: int | None, name: str | None = None) -> int:
        """Of a class of TRUTH; `classes.unknown` where nobody says what it is."""
        for key in (name, None if value is None else str(value)):
            if key is not None and key in self.given:
                return self.given[key]
        own = self.classes.index(name) if name is not None else None
        if own is None and value is not None and name is None:
            own = self.classes.values.index(value) if value in self.classes.values else None
        if own is not None and "*" not in self.given:
            return own
        return self.given.get("*", self.classes.unknown if own is None else own)

    def table(self, names: Mapping[int, str] | None) -> NDArray[np.uint8 | np.uint16]:
        """Number in TRUTH -> index.

        Args:
            names: TRUTH's own names, which decide where it has some.
        """
        table = np.full(MAX_VALUE + 1, self.given.get("*", self.classes.unknown), self.classes.dtype)
        if names is not None:
            numbered: dict[int, str | None] = dict(names)
        else:
            numbered = dict.fromkeys(self.classes.values)
        for key in self.given:
            if key.isdecimal() and int(key) <= MAX_VALUE:
                numbered.setdefault(int(key), None)
        for value, name in numbered.items():
            table[value] = self.index(value, name)
        return table


def parse_recode(
    text: str | Mapping[str | int, str | int] | None, ignore: str | Sequence[str | int], classes: Classes
) -> Recode:
    """`4=cloud,9=ignore,*=clear`: TRUTH's class on the left, PRED's or `ignore` on the right; and those to ignore.

    Raises:
        UsageError: EV-007, it is something else, or PRED has no such class.
    """
    pairs: list[tuple[str, str]] = []
    if isinstance(text, str):
        for part in (p for p in text.split(",") if p.strip()):
            left, equals, right = part.partition("=")
            if not equals or not left.strip() or not right.strip():
                raise _no_recode(part, classes)
            pairs.append((left.strip(), right.strip()))
    elif text:
        pairs = [(str(left), str(right)) for left, right in text.items()]
    left_out = ignore.split(",") if isinstance(ignore, str) else ignore
    pairs += [(str(value).strip(), IGNORE) for value in left_out if str(value).strip()]
    given = {}
    for left, right in pairs:
        index = classes.index(right)
        if index is None and right != IGNORE:
            raise _no_recode(f"{left}={right}", classes)
        given[left] = classes.none if index is None else index
    return Recode(classes, given)


def _no_recode(part: str, classes: Classes) -> UsageError:
    return UsageError(
        f"{part!r} is no recoding: expected TRUTH's number or name, `=`, and `{IGNORE}` or a class of PRED, "
        f"which has {classes}",
        code="EV-007",
        title="Recoding cannot be understood",
        fix='write --recode "4=cloud,9=ignore,*=clear"',
    )


def chosen(text: str | Sequence[str | int], classes: Classes, *, option: str) -> tuple[int, ...]:
    """Indices of classes that an option names.

    Raises:
        UsageError: EV-007, PRED has no such class.
    """
    parts = [p.strip() for p in text.split(",") if p.strip()] if isinstance(text, str) else list(text)
    found = [(part, classes.index(part)) for part in parts]
    for part, index in found:
        if index is None:
            raise UsageError(
                f"{option} names class {part!r}; PRED has {classes}",
                code="EV-007",
                title="No such class",
                fix="use one of these names or numbers",
            )
    return tuple(dict.fromkeys(index for _, index in found if index is not None))


def mismatch(truth: str, classes: Classes, where: str) -> InputError:
    """EV-005, with both lists.

    Args:
        truth: What TRUTH has, in words.
        classes: PRED's.
        where: TRUTH's path, and window if known.
    """
    return InputError(
        f"TRUTH has {truth}; PRED has the classes {classes}",
        code="EV-005",
        title="Classes of PRED and TRUTH do not match",
        where=where,
        fix="say what TRUTH's classes are in PRED: --recode \"4=cloud,*=clear,9=ignore\", or PRED's own: --classes",
    )
