"""Which band a person means: by name, colour or 1-based number in the file."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.scene.base import Band


def select_bands(bands: Sequence[Band], wanted: Sequence[str | int], *, where: str) -> tuple[Band, ...]:
    """The bands that `wanted` names, in that order; one band may be asked for more than once.

    A name is compared with the file's descriptions as written, then without case, then with other names that bands go
    by, then with colour interpretations ("red"), and last, when it is all digits, taken as a number.

    Raises:
        InputError: IN-011, a band is unknown, its name is ambiguous, or none is asked for.
    """
    if isinstance(wanted, (str, int)):
        wanted = [wanted]
    if not wanted:
        raise _unknown("no band was asked for", bands, where=where, fix="name at least one band")
    return tuple(_find(bands, one, where=where) for one in wanted)


def _find(bands: Sequence[Band], wanted: str | int, *, where: str) -> Band:
    if isinstance(wanted, int):
        return _by_number(bands, wanted, where=where)
    text = wanted.strip()
    keys = (
        [b for b in bands if b.described and b.name == text],
        [b for b in bands if b.described and b.name.casefold() == text.casefold()],
        [b for b in bands if text.casefold() in {alias.casefold() for alias in b.aliases}],
        [b for b in bands if b.color == text.casefold() and b.color != "undefined"],
    )
    found = next((hits for hits in keys if hits), [])
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(str(b.index) for b in found)
        what = f"band {wanted!r} is ambiguous: bands {numbers} are all called that"
        raise _unknown(what, bands, where=where, fix="give the number of the band in the file instead, 1-based")
    if text.isdecimal():
        return _by_number(bands, int(text), where=where)
    return _fail_by_name(bands, wanted, where=where)


def _by_number(bands: Sequence[Band], number: int, *, where: str) -> Band:
    for band in bands:
        if band.index == number:
            return band
    what = f"there is no band number {number} (numbers start at 1; alpha bands do not count)"
    raise _unknown(what, bands, where=where, fix="choose from the bands listed")


def _fail_by_name(bands: Sequence[Band], wanted: str, *, where: str) -> Band:
    names = {b.name.casefold(): b.name for b in bands if b.described}
    near = difflib.get_close_matches(wanted.casefold(), names, n=1, cutoff=0.5)
    fix = f"did you mean {names[near[0]]!r}?" if near else "choose from the bands listed, by name or 1-based number"
    raise _unknown(f"there is no band called {wanted!r}", bands, where=where, fix=fix)


def _unknown(what: str, bands: Sequence[Band], *, where: str, fix: str) -> InputError:
    shown = ", ".join(f"{b.index} {b.name}" if b.described else str(b.index) for b in bands[:30])
    more = f", … {len(bands) - 30} more" if len(bands) > 30 else ""  # noqa: PLR2004
    return InputError(
        f"{what}; the scene has: {shown}{more}", code="IN-011", title="Unknown band", where=where, fix=fix
    )
