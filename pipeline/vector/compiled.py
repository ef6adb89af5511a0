"""How loops are compiled, and what they share. Import it where it is first needed: Numba takes half a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Int32s = NDArray[np.int32]
    Int64s = NDArray[np.int64]


def compiled(function: Callable[..., Any]) -> Any:
    """Compiled when first called, and kept on disk where there is a place for it: beside its file, or in a cache."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # an installation that cannot be written to, and no home
        return njit(nogil=True)(function)


@compiled
def longer(values: Any) -> Any:
    """An array of twice the length that begins with these values; the rest has none yet."""
    grown = np.empty((2 * len(values),) + values.shape[1:], values.dtype)  # noqa: RUF005 - as Numba reads it
    grown[: len(values)] = values
    return grown


@compiled
def numbers_of(chosen: NDArray[np.uint8], found: Int32s) -> int:
    """Write the places that are 1 into `found`, which has room for all places; returns how many there are.

    Without a branch: processors guess wrong at every second one of a ragged border.
    """
    count = 0
    for place in range(len(chosen)):
        found[count] = place
        count += chosen[place]
    return count
