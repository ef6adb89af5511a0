"""How pieces of boundaries become rings."""

from __future__ import annotations

import numpy as np

from pipeline.vector.join import _lowest

NONE = np.iinfo(np.int64).max


def test_a_piece_without_corners_takes_none_from_the_one_that_begins_with_it() -> None:
    """A straight boundary across a tile has none: the exterior of a region was lost once in a million for it."""
    corners = np.array([5, 3, 9, 8, 2])
    pieces = np.array([[0, 3], [0, 0], [3, 2], [3, 0], [5, 0]])
    for order in ([0, 1, 2, 3, 4], [1, 0, 3, 2, 4], [4, 2, 3, 1, 0]):
        assert _lowest(corners, pieces[order]).tolist() == np.array([3, NONE, 2, NONE, NONE])[order].tolist()


def test_no_pieces_have_no_corners() -> None:
    assert _lowest(np.empty(0, np.int64), np.empty((0, 2), np.int64)).tolist() == []
